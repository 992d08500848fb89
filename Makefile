# Needs only make, pip and Python (3.11 is what we test with).
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.noisegate-installed

export OMP_NUM_THREADS ?= 2

.PHONY: venv check-torch test docs demo sweep-demo

venv: $(STAMP)

# Installed again only when setup.py changes: torch is several gigabytes.
$(STAMP): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[dev,docs]"
	touch $@

# First, because everything else fails obscurely without it.
check-torch: venv
	@$(BIN)/python -c "import torch, torchaudio" || { \
	echo "torch and torchaudio do not import together: they must be the" \
	"same release and the same build (both CPU or the same CUDA)." >&2; \
	exit 1; }

test: check-torch
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint .
	$(BIN)/python -m pytest -q --doctest-modules noisegate tests
	$(BIN)/mkdocs build --strict

docs: venv
	$(BIN)/mkdocs build --strict

demo: check-torch
	cd recipes/VAD && $(BIN)/python demo.py

sweep-demo: check-torch
	OMP_NUM_THREADS=1 $(BIN)/noisegate sweep recipes/Synthetic/hparams/gated.yaml \
	--folder=results/sweep-demo --budgets=1,0.25,0.125 \
	--methods=noise,stochastic,narrow --seeds=2 --jobs=2 \
	-- --teacher_widths=[16]
	$(BIN)/noisegate report results/sweep-demo
