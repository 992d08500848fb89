#!/usr/bin/env bash
# What holds and what it costs on a GPU, in some six minutes:
#
# > [DEVICE=cuda] [WHEELS=folder] [TIME_S=300] benchmarks/gpu_check.sh FOLDER
#
# 1. The environment: what the machine has, and the wheels in WHEELS.
# 2. The tests with the mark gpu.
# 3. The VAD recipe on its sample, to a quarter of the MACs, in bf16.
# 4. Steps of five models, see benchmarks/steps.py: figures in FOLDER/steps_*.
# What is in FOLDER already is not done again; no step is begun after TIME_S
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
if [ ! -e "$FOLDER/tests_passed" ]; then
    if "$PYTHON" -m pytest -q -m gpu --device="$DEVICE" --tb=short \
        --show-capture=no -W ignore -p no:cacheprovider \
        tests/unittests/test_device.py > "$FOLDER/tests.log" 2>&1; then
        touch "$FOLDER/tests_passed"
    else
        failed=1
    fi
    tail -n 60 "$FOLDER/tests.log"
    echo "tests: $SECONDS s"
fi

if [ ! -e "$FOLDER/vad/result.json" ] && [ "$(left)" -gt 0 ]; then
    LENGTH="--number_of_epochs=6 --freeze_epoch=4 --mixes_per_segment=4"
    [ "$DEVICE" = cpu ] && LENGTH="--number_of_epochs=2 --freeze_epoch=2"
    # shellcheck disable=SC2086  # several words
    cd recipes/VAD && timeout 200 "$PYTHON" -W ignore train.py \
        hparams/crnn_gated.yaml --device="$DEVICE" --precision=bf16 \
        --budget=0.25 --output_folder="$FOLDER/vad" $LENGTH \
        > "$FOLDER/vad.log" 2>&1 || failed=1
    tail -n 5 "$FOLDER/vad.log"
    cd "$ROOT" && echo "recipe: $SECONDS s"
fi

"$PYTHON" -W ignore benchmarks/steps.py "$FOLDER" --device="$DEVICE" \
    --seconds="$(left)" --compile="${COMPILE:-ecapa,resnet34}" || failed=1
echo "steps: $SECONDS s"

exit $failed
