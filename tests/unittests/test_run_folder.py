"""A folder belongs to its settings and to one process."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML

from noisegate.evaluation.chain import run_stages, stages
from noisegate.evaluation.run_folder import check_overrides, owned

HEAD = """
seed: 1
output_folder: {folder}
save_folder: !ref <output_folder>/save
budget: 0.5
number_of_epochs: 8
num_workers: 0
lr: 0.001
channels: [16, 32]
fbank: !new:speechbrain.lobes.features.Fbank
    n_mels: 40
counter: !new:speechbrain.utils.epoch_loop.EpochCounter
    limit: !ref <number_of_epochs>
"""

OWNER = """
import sys, time
from pathlib import Path
from noisegate.evaluation.run_folder import check_overrides, owned
with owned(Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def hparams(tmp_path):
    """A YAML, and the folder of its run."""
    path, folder = tmp_path / "hparams.yaml", tmp_path / "run"
    path.write_text(HEAD.format(folder=folder), encoding="utf-8")
    return path, folder


def start(hparams, overrides=None, finish=False, run_opts=None):
    """Begins a run; the overrides that it gets, or None if it is finished."""
    path, folder = hparams
    found = None
    for found in stages(path, overrides, run_opts):
        (folder / "save" / "CKPT+1").mkdir(parents=True, exist_ok=True)
        if finish:
            (folder / "result.json").write_text('{"x": 1}', encoding="utf-8")
    return found


@pytest.mark.parametrize("finish", [False, True])
@pytest.mark.parametrize(
    "overrides, says",
    [
        ("budget: 0.2", "budget was 0.5, is 0.2"),
        ("seed: 2", "seed was 1, is 2"),
        ("channels: [16, 48]", r"channels\.1 was 32, is 48"),
        ("fbank: {n_mels: 24}", r"fbank\.n_mels was 40, is 24"),
        ("fbank: {f_min: 100}", r"fbank\.f_min was 'nothing', is 100"),
        ("number_of_epochs: 4", "number_of_epochs was 8, is 4"),
    ],
)
def test_other_settings_are_refused(hparams, overrides, says, finish):
    start(hparams, finish=finish)
    kept = (hparams[1] / "settings.json").read_text("utf-8")
    with pytest.raises(ValueError, match=says) as error:
        start(hparams, overrides)
    assert "--overwrite=True" in str(error.value)
    assert (hparams[1] / "settings.json").read_text("utf-8") == kept


def test_a_changed_yaml_is_refused(hparams):
    start(hparams)
    path, _ = hparams
    text = path.read_text("utf-8").replace("lobes.features.Fbank", "x.Y")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="fbank is a was .* is '!new:.*x.Y'"):
        start(hparams)


@pytest.mark.parametrize(
    "overrides", ["", "num_workers: 4", "number_of_epochs: 20"]
)
def test_what_changes_nothing_goes_on(hparams, overrides):
    assert start(hparams) is not None
    assert start(hparams, overrides) is not None
    # Epochs that were added are settings from then on
    if "epochs" in overrides:
        with pytest.raises(ValueError, match="number_of_epochs was 20, is 8"):
            start(hparams)


def test_a_finished_run_is_not_repeated_nor_prolonged(hparams):
    assert start(hparams, finish=True) is not None
    assert start(hparams) is None
    with pytest.raises(ValueError, match="number_of_epochs was 8, is 9"):
        start(hparams, "number_of_epochs: 9")


@pytest.mark.parametrize("finish", [False, True])
@pytest.mark.parametrize(
    "file", ["model.ckpt", "save/CKPT+1/model.ckpt"], ids=["compact", "save"]
)
def test_the_weights_that_a_run_starts_from_are_settings(
    hparams, tmp_path, file, finish
):
    """Others in the same place are refused; a finished run needs none."""
    weights = tmp_path / "dense" / file
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"1")
    with open(hparams[0], "a", encoding="utf-8") as yaml:
        yaml.write("pretrained: null\nteacher: {folder: !ref <pretrained>}\n")
    folder = weights.parent if "CKPT" not in file else weights.parents[1]
    for place in (folder, weights):
        of_run = hparams[0], tmp_path / f"run_{place.name}"
        given = {"pretrained": str(place), "output_folder": str(of_run[1])}
        start(of_run, given, finish)
        start(of_run, given)
        weights.write_bytes(b"2")
        with pytest.raises(ValueError, match="content of pretrained was"):
            start(of_run, given)
        weights.write_bytes(b"1")
        start(of_run, given)
    weights.unlink()
    start(of_run, given)


@pytest.mark.parametrize("finish", [False, True])
@pytest.mark.parametrize("name", ["train.csv", "train.json", "asr.ckpt"])
def test_files_of_others_are_settings(hparams, tmp_path, name, finish):
    """A manifest or weights that somebody has written; what is not there when
    a run begins is its own, and a finished run needs none."""
    theirs, own = tmp_path / "theirs" / name, tmp_path / "own" / name
    for path in (theirs, own):
        path.parent.mkdir()
    with open(hparams[0], "a", encoding="utf-8") as yaml:
        yaml.write(f"used: {theirs}\nmade: {{here: {own}}}\n")
    theirs.write_bytes(b"1")
    for content in (b"1", b"2", b"3"):
        start(hparams, finish=finish and content == b"3")
        own.write_bytes(content)
    theirs.write_bytes(b"2")
    with pytest.raises(ValueError, match="content of used was"):
        start(hparams)
    theirs.unlink()
    start(hparams)


def test_checkpoints_elsewhere_are_no_settings(hparams, tmp_path):
    """Those that the run itself writes, in a save_folder outside of it."""
    checkpoint = tmp_path / "scratch" / "CKPT+1" / "model.ckpt"
    checkpoint.parent.mkdir(parents=True)
    given = {"save_folder": str(checkpoint.parents[1])}
    start(hparams, given)
    for content in (b"1", b"2", b"3"):
        checkpoint.write_bytes(content)
        start(hparams, given)


def test_options_of_speechbrain_are_settings(hparams):
    start(hparams, run_opts={"precision": "fp32", "device": "cpu"})
    start(hparams, run_opts={"precision": "fp32", "device": "cuda"})
    with pytest.raises(ValueError, match="precision was 'fp32', is 'bf16'"):
        start(hparams, run_opts={"precision": "bf16"})


def test_a_folder_may_be_moved(hparams, tmp_path):
    path, folder = hparams
    start(hparams)
    folder.rename(tmp_path / "moved")
    overrides = {"output_folder": str(tmp_path / "moved")}
    assert start((path, tmp_path / "moved"), overrides) is not None


def test_overwrite_moves_the_old_folder_aside(hparams):
    _, folder = hparams
    start(hparams, "{overwrite: true}", finish=True)  # of nothing
    found = start(hparams, "{budget: 0.2, overwrite: true}", finish=True)
    assert found == {"budget": 0.2}
    assert start(hparams, "{overwrite: true}") == {}
    assert sorted(p.name for p in folder.parent.iterdir()) == [
        *("hparams.yaml", "run", "run.old1", "run.old2"),
    ]
    before = [folder.with_name(f"run.old{n}") for n in (1, 2)]
    budgets = [
        json.loads((f / "settings.json").read_text("utf-8"))["budget"]
        for f in (*before, folder)
    ]
    assert budgets == [0.5, 0.2, 0.5]
    assert (before[0] / "result.json").exists()


@pytest.mark.parametrize("left", ["save/CKPT+1", "compact"])
def test_a_run_of_unknown_settings_is_refused(hparams, left):
    """And nothing of it is taken away."""
    place = hparams[1] / left
    place.mkdir(parents=True)
    with pytest.raises(ValueError, match="of unknown settings"):
        start(hparams)
    assert place.is_dir()


def test_what_was_left_half_done_is_taken_away(hparams):
    _, folder = hparams
    start(hparams)
    (folder / "compact").mkdir()
    (folder / ".result.json.7.tmp").write_text("{", encoding="utf-8")
    start(hparams)
    assert not (folder / "compact").exists()
    assert not list(folder.glob(".*.tmp"))
    assert (folder / "save" / "CKPT+1").is_dir()
    # What is finished stays
    start(hparams, finish=True)
    (folder / "compact").mkdir()
    start(hparams)
    assert (folder / "compact").exists()


def own(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "owned\n"
    return process


def test_another_process_is_kept_out_until_it_ends(hparams, caplog):
    path, folder = hparams
    process = own(folder)
    try:
        with pytest.raises(BlockingIOError, match=f"process {process.pid}"):
            start(hparams)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    # The lock of a dead process is taken over, and that is said
    assert start(hparams) is not None
    assert f"by process {process.pid}" in caplog.text


def test_children_of_a_dead_process_do_not_keep_its_lock(tmp_path):
    """As data loader workers could for some seconds."""
    folder = tmp_path / "run"
    script = OWNER.replace(
        "    time.sleep(600)",
        "    import os\n"
        "    if os.fork():\n"
        "        os.kill(os.getpid(), 9)\n"
        "    time.sleep(60)\n"
        "    os._exit(0)\n",
    )
    command = [sys.executable, "-c", script, str(folder)]
    with open(tmp_path / "log", "w", encoding="utf-8") as log:
        died = subprocess.run(command, stdout=log, check=False)
    assert died.returncode == -signal.SIGKILL
    with owned(folder):
        pass


def test_errors_of_a_user_are_one_line(hparams, capsys):
    path, folder = hparams

    def run(hparams_file, run_opts, overrides):
        raise FileNotFoundError("data_folder /nowhere is\nnot a folder")

    with pytest.raises(SystemExit) as end:
        run_stages(run, path, {})
    assert end.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "data_folder /nowhere is not a folder" in said[0]
    assert "Traceback" in (folder / "log.txt").read_text("utf-8")
    with pytest.raises(FileNotFoundError):
        run_stages(run, path, {"debug": True}, {"overwrite": True})


def test_errors_of_the_program_are_raised(hparams):
    def run(hparams_file, run_opts, overrides):
        raise AttributeError("no such thing")

    with pytest.raises(AttributeError):
        run_stages(run, hparams[0], {})
    assert Path(hparams[1]).is_dir()


CHAIN = """
pretrained: null
teacher_folder: null
gate_layers: null
budgets: [0.5, 0.25]
dense: {lr: 0.1}
stage: {number_of_epochs: 4}
__start: !apply:str [!ref <pretrained>]
"""


def chain(hparams, overrides=None):
    """Makes a chain; gives the names of the folders in which a run was made."""
    path, folder = hparams
    made, share = [], {"dense": 1.0}
    for values in stages(path, overrides):
        place = Path(values["output_folder"])
        made.append(place.name)
        share = float(place.name) if place.name != "dense" else 1.0
        result = {"macs_per_second_full": 1e6, "macs_per_second": share * 1e6}
        result.update(params=1, steps=1, test={"EER": 1.0})
        (place / "result.json").write_text(json.dumps(result), "utf-8")
    return made


def test_stages_of_a_chain_belong_to_their_settings(hparams):
    path, folder = hparams
    path.write_text(path.read_text("utf-8") + CHAIN, encoding="utf-8")
    assert chain(hparams) == ["dense", "0.5", "0.25"]
    assert chain(hparams) == []
    # A budget between two others changes where the next one would start
    # and who teaches it
    assert chain(hparams, {"budgets": [0.5, 0.3, 0.25]}) == ["0.3"]
    for name, start in (("0.5", "dense"), ("0.3", "0.5"), ("0.25", "0.5")):
        settings = json.loads((folder / name / "settings.json").read_text())
        assert settings["pretrained"].endswith(f"/{start}/compact")
        assert settings["teacher_folder"] == settings["pretrained"]
    other_teacher = {"teacher_folder": "another"}
    other_stage = {"stage": {"number_of_epochs": 5}}
    for overrides in ({"seed": 2}, other_stage, other_teacher):
        with pytest.raises(ValueError, match="belongs to a run with other"):
            chain(hparams, overrides)
    assert chain(hparams, {"seed": 2, "overwrite": True})[0] == "dense"


@pytest.mark.parametrize(
    "overrides, says",
    [
        ({"dense": {"rl": 0.1}}, "^dense: the YAML has no key 'rl'"),
        ({"stage": {"lr": -1}}, "^stage: lr must be a number from 0 on"),
        ({"stage": 3}, "^stage must be .* a mapping"),
        ({"stage": [3]}, "^stage must be a mapping"),
    ],
)
def test_keys_of_stages_are_checked(hparams, overrides, says):
    path, folder = hparams
    path.write_text(path.read_text("utf-8") + CHAIN, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        chain(hparams, overrides)
    assert not folder.exists()


HPARAMS = sorted(
    (Path(__file__).parents[2] / "recipes").glob("*/hparams/*.yaml")
)
NOT_NUMBERS = ["abc", "25%", [1], {"a": 1}, True, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("path", HPARAMS, ids=lambda path: path.stem)
def test_overrides_of_another_kind_are_refused_by_name(path):
    """Each key of each recipe with each value that cannot be meant."""
    plan = YAML().load(path.read_text("utf-8"))
    tried = 0
    for key, default in plan.items():
        if isinstance(default, bool):
            bad = ["abc", 3, 0.5, [True]]
        elif isinstance(default, (int, float)):
            bad = NOT_NUMBERS + [-1, -0.5] * (default >= 0)
            bad += [2.5] * (key in ("number_of_epochs", "batch_size", "n_mels"))
        elif type(default) is str:
            bad = [3, 0.5, True, [default]]
        else:
            continue
        check_overrides(plan, {key: default})
        check_overrides(plan, {key: None})
        for value in bad:
            with pytest.raises(ValueError, match=f"^{key} must be") as error:
                check_overrides(plan, {key: value})
            assert repr(value) in str(error.value)
            tried += 1
    assert tried > 100


@pytest.mark.parametrize(
    "overrides, says",
    [
        ("bugdet: 0.2", "no key 'bugdet'; is 'budget' meant"),
        ("budget: 25%", "budget must be a number, as '0.5' is; got '25%'"),
        ("number_of_epochs: 2.5", "number_of_epochs must be a whole number"),
        ("lr: -0.1", "lr must be a number from 0 on"),
        ("channels: [3, many]", "channels must be a whole number.*'many'"),
        ("channels: [16, 0]", "channels must be a whole number above 0"),
        ("number_of_epochs: 0", "number_of_epochs must .* above 0.*; got 0"),
        ("channels: [2.5]", "channels must be a whole number"),
    ],
)
def test_a_bad_override_leaves_nothing(hparams, overrides, says):
    with pytest.raises(ValueError, match=says):
        start(hparams, overrides)
    assert not hparams[1].exists()


def test_an_override_may_be_a_reference(hparams):
    """As SpeechBrain's own may; a sweep over seeds can be one over folds."""
    found = start(hparams, "save_folder: !ref <output_folder>/of_<seed>")
    with open(hparams[0], encoding="utf-8") as fin:
        loaded = load_hyperpyyaml(fin, found)
    assert loaded["save_folder"] == f"{hparams[1]}/of_1"


def test_a_damaged_result_is_no_result(hparams, caplog):
    start(hparams, finish=True)
    (hparams[1] / "result.json").write_text('{"x": ', encoding="utf-8")
    assert start(hparams) is not None
    assert "result.json is damaged" in caplog.text
    assert (hparams[1] / "result.json.broken").exists()
