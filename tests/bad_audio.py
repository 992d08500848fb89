"""Audio files that a command cannot hear, for its tests."""

import numpy as np
import soundfile as sf


def bad_files(folder):
    """Files that are no audio, or none that can be used."""
    rng = np.random.default_rng(0)
    tone = rng.normal(size=16000) / 10
    sf.write(folder / "empty.wav", tone[:0], 16000)
    nan = np.where(np.arange(16000) == 9000, np.nan, tone)
    sf.write(folder / "nan.wav", nan, 16000, subtype="FLOAT")
    (folder / "text.wav").write_text("not audio")
    (folder / "zero.wav").write_bytes(b"")
    (folder / "folder.wav").mkdir()
    sf.write(folder / "cut.flac", tone, 16000)
    cut = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(cut[: len(cut) // 2])
    names = "empty.wav nan.wav text.wav zero.wav folder.wav cut.flac none.wav"
    return [folder / name for name in names.split()]


def assert_named(files, out, err):
    """All but the last are named, a line for each; the last is heard."""
    lines = err.strip().split("\n")
    for path, line in zip(files[:-1], lines, strict=True):
        assert line.startswith(f"noisegate: {path}: it ")
    assert out.strip().split("\n")[-1].startswith(files[-1])
