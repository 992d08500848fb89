#!/usr/bin/env bash
# Does a cut detector run where it shall, with the same output everywhere?
#
# > benchmarks/clean_environments.sh FOLDER AUDIO [WORK]
#
# FOLDER is the compact folder of a causal detector of recipes/VAD, AUDIO a file
# of 16 kHz. Makes three virtual environments in WORK (kept if they are there):
# 1. speechbrain alone: speechbrain.inference.VAD on the folder.
# 2. onnxruntime, numpy, soundfile: `noisegate vad` on what was exported.
# 3. the package with its extra deploy, which exports the folder.
set -euo pipefail
FOLDER=$(realpath "${1:?give the compact folder of a detector}")
AUDIO=$(realpath "${2:?give an audio file}")
WORK=$(realpath -m "${3:-$(mktemp -d)}")
ROOT=$(realpath "$(dirname "$0")/..")
PYTHON=${PYTHON:-python3}
mkdir -p "$WORK"
cd "$WORK"

make_one() { # NAME PACKAGES: an environment of its own
    [ -e "$1/made" ] && return
    "$PYTHON" -m venv "$1"
    "$1/bin/pip" install -q "${@:2}"
    touch "$1/made"
}
make_one full "$ROOT[deploy]" "torch==2.11.*" "torchaudio==2.11.0"
make_one small onnxruntime numpy soundfile
make_one plain speechbrain==1.1.2 "torch==2.11.*" "torchaudio==2.11.0" soundfile
# Without its dependencies, and as it is now
small/bin/pip install -q --no-deps --force-reinstall "$ROOT"

rm -f vad.onnx
full/bin/noisegate export "$FOLDER" --streaming --output=vad.onnx \
    --check "$AUDIO"
for name in full small; do
    "$name/bin/noisegate" vad --model=vad.onnx "$AUDIO" > "$name.txt"
    "$name/bin/python" - "$AUDIO" "$name.npy" <<'END'
import sys
import numpy as np
from noisegate.deploy.audio import blocks
from noisegate.deploy.runtime import Model
stream = Model("vad.onnx").stream()
made = [stream.feed(block) for block in blocks(sys.argv[1], 16000)]
scores = np.concatenate([*made, stream.finish()]).reshape(-1)
np.save(sys.argv[2], 1 / (1 + np.exp(-scores)))
END
done
plain/bin/python - "$FOLDER" "$AUDIO" plain.npy <<'END'
import sys
import numpy as np
import soundfile
import torch
from speechbrain.inference.VAD import VAD
folder, audio, target = sys.argv[1:]
vad = VAD.from_hparams(source=folder, savedir=folder)
signal, rate = soundfile.read(audio, dtype="float32")
with torch.no_grad():
    probs = vad.get_speech_prob_chunk(torch.from_numpy(signal))
np.save(target, probs.reshape(-1).numpy())
vad.get_speech_segments(audio)
END
cmp full.txt small.txt
small/bin/python - <<'END'
import numpy as np
plain, full, small = (np.load(f"{n}.npy") for n in ("plain", "full", "small"))
worst = max(np.abs(plain - other).max() for other in (full, small))
print(f"{len(plain)} frames, probabilities differ by {worst:.1g} at most")
assert worst < 1e-5
END
for name in full small plain; do
    echo "$name: $(du -sh "$name" | cut -f1)"
done
cat small.txt
