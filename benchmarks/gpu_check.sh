#!/usr/bin/env bash
# What holds and what it costs on a GPU, in some six minutes:
#
# > [DEVICE=cuda] [WHEELS=folder] [LA=folder] [TIME_S=300] \
# >     benchmarks/gpu_check.sh FOLDER
#
# 1. The environment: what the machine has, and the wheels in WHEELS.
# 2. Side by side: the tests with the mark gpu; the VAD recipe on its sample, to
#    a quarter of the MACs, in bf16; keywords on their sample, in a chain.
# 3. Steps of five models, see benchmarks/steps.py: figures in FOLDER/steps_*.
# 4. ResNet34 at full size, to a quarter of the MACs, on the corpus in LA, which
#    has the tree of ASVspoof 2019 LA; left out without one.
# What is in FOLDER already is not done again; nothing is begun after TIME_S
# seconds. DEVICE=cpu does all of it on a CPU, with small models.
set -u
FOLDER=$(realpath -m "${1:?give a folder for the figures}")
DEVICE=${DEVICE:-cuda}
TIME_S=${TIME_S:-300}
ROOT=$(realpath "$(dirname "$0")/..")
PYTHON=${PYTHON:-python3}
mkdir -p "$FOLDER"
cd "$ROOT" || exit 1
left() { echo $((TIME_S - SECONDS)); }

if [ -n "${WHEELS:-}" ]; then
    SITE=$(mktemp -d)
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile \
        --target "$SITE" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH="$SITE:${PYTHONPATH:-}"
fi
export PYTHONPATH="$ROOT:${PYTHONPATH:-}" CUBLAS_WORKSPACE_CONFIG=:4096:8
"$PYTHON" - "$DEVICE" > "$FOLDER/environment.json" <<'END' || exit 1
import json, platform, sys
import torch, torchaudio, speechbrain
cuda = sys.argv[1] != "cpu"
print(json.dumps({
    "device": torch.cuda.get_device_name() if cuda else platform.machine(),
    "python": platform.python_version(),
    "torch": torch.__version__,
    "torchaudio": torchaudio.__version__,
    "speechbrain": speechbrain.__version__,
}))
END
cat "$FOLDER/environment.json"

failed=0
# recipe NAME FOLDER_OF_RECIPE ARGUMENTS: trains, unless that was done
recipe() {
    local name=$1 place=$2
    shift 2
    [ -e "$FOLDER/$name.passed" ] && return
    if (cd "recipes/$place" && timeout 280 "$PYTHON" -W ignore train.py "$@" \
        --device="$DEVICE" --output_folder="$FOLDER/$name" --noprogressbar \
        > "$FOLDER/$name.log" 2>&1); then
        touch "$FOLDER/$name.passed"
    fi
    tail -n 6 "$FOLDER/$name.log"
    echo "$name: $SECONDS s"
}
tests() {
    [ -e "$FOLDER/tests.passed" ] && return
    if "$PYTHON" -m pytest -q -m gpu --device="$DEVICE" --tb=short \
        --show-capture=no -W ignore -p no:cacheprovider \
        tests/unittests/test_device.py > "$FOLDER/tests.log" 2>&1; then
        touch "$FOLDER/tests.passed"
    fi
    tail -n 60 "$FOLDER/tests.log"
    echo "tests: $SECONDS s"
}
finished() { [ -e "$FOLDER/$1.passed" ] || failed=1; }

VAD=(--number_of_epochs=6 --freeze_epoch=4 --mixes_per_segment=4
    --batch_size=16 --lr=0.001 --lr_final=0.0001)
KEYWORDS=("--budgets=[0.25, 0.0625]")
if [ "$DEVICE" = cpu ]; then
    VAD=(--number_of_epochs=2 --freeze_epoch=2 --mixes_per_segment=4)
    ALIGNED=${ALIGNED:-resnet34}  # Too few channels in the small Conformer
    KEYWORDS+=(--number_of_epochs=2 "--stage={number_of_epochs: 2, freeze_epoch: 2}")
fi
tests &
[ "$DEVICE" = cpu ] && wait  # Few cores
recipe vad VAD hparams/crnn_gated.yaml --precision=bf16 --budget=0.25 \
    "${VAD[@]}" &
[ "$DEVICE" = cpu ] && wait
recipe keywords Keywords hparams/tc_resnet8_gated.yaml "${KEYWORDS[@]}" &
wait
for name in tests vad keywords; do finished $name; done

"$PYTHON" -W ignore benchmarks/steps.py "$FOLDER" --device="$DEVICE" \
    --seconds="$(left)" --compile="${COMPILE:-ecapa,resnet34}" \
    --models="${MODELS:-wav2vec2,crnn,resnet34,ecapa,conformer}" \
    --aligned="${ALIGNED:-resnet34,conformer}" || failed=1
echo "steps: $SECONDS s"

if [ -n "${LA:-}" ] && [ "$(left)" -gt 0 ]; then
    recipe resnet34 ASVspoof hparams/resnet34_gated.yaml --budget=0.25 \
        --data_folder="$LA" --precision=bf16
    finished resnet34
fi
exit $failed
