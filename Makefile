# Needs only make, pip and Python (3.11 is what we test with).
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.noisegate-installed
# TORCH=cpu asks for wheels without CUDA (a tenth of the size), from the index
# that PyTorch documents for them; needs that index to be within reach.
TORCH ?=
INDEX := $(if $(filter cpu,$(TORCH)),--extra-index-url \
	https://download.pytorch.org/whl/cpu)

export OMP_NUM_THREADS ?= 2
# Two files of tests at a time, one thread each
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: venv check-torch style shape quick test docs demo sweep-demo

venv: $(STAMP)

# Installed again only when setup.py changes: torch is several gigabytes.
$(STAMP): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(INDEX) -e ".[dev,docs]"
	touch $@

# First, because everything else fails obscurely without it.
check-torch: venv
	@$(BIN)/python -c "import torch, torchaudio" || { \
	echo "torch and torchaudio do not import together: they must be the" \
	"same release and the same build (both CPU or the same CUDA)." >&2; \
	exit 1; }

style: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint .

# Sizes, imports and numbers of files that this project keeps to.
shape: venv
	$(BIN)/python tests/shape.py

# The core's properties, in some two minutes.
quick: check-torch
	$(PYTEST) --doctest-modules noisegate/rules noisegate/*.py \
	tests/unittests/test_gate.py tests/unittests/test_rules.py \
	tests/unittests/test_groups.py tests/unittests/test_gates.py \
	tests/unittests/test_cost.py tests/unittests/test_compact.py \
	tests/unittests/test_corrections.py tests/unittests/test_trial.py \
	tests/unittests/test_private.py tests/unittests/test_calls.py \
	tests/unittests/test_brain_model.py tests/unittests/test_teacher.py

test: check-torch style shape docs
	$(PYTEST) --doctest-modules noisegate tests

docs: venv
	$(BIN)/mkdocs build --strict

# Keywords on the sample of real speech: a dense network, cut to three budgets in
# a chain, beside networks that are narrow from the start.
DEMO := cd recipes/Keywords && OMP_NUM_THREADS=1 $(BIN)
demo: check-torch
	$(DEMO)/noisegate sweep hparams/tc_resnet8_gated.yaml --chain \
	--folder=results/demo --budgets=0.125,0.04 \
	--methods=noise,narrow --jobs=2 -- --number_of_epochs=20 \
	'--stage={number_of_epochs: 8, freeze_epoch: 3}'
	$(DEMO)/noisegate latency results/demo --rounds=3 --trust
	$(DEMO)/noisegate report results/demo
	@echo "The picture is recipes/Keywords/results/demo/curves.png; to have a"
	@echo "word recognized by the smallest network:"
	@echo "  cd recipes/Keywords"
	@echo "  $(BIN)/python recognize.py \\"
	@echo "      results/demo/cells/noise_0.04_1/compact sample/ogg/caedb73a.ogg"

sweep-demo: check-torch
	OMP_NUM_THREADS=1 $(BIN)/noisegate sweep recipes/Synthetic/hparams/student_gated.yaml \
	--folder=results/sweep-demo --budgets=1,0.25,0.125 \
	--methods=noise,hard_concrete,narrow --seeds=2 --jobs=2 \
	-- --teacher_widths=[16]
	$(BIN)/noisegate report results/sweep-demo
