# Every target creates or reuses $(VENV), installs what it needs once, and works from a fresh clone.
#   make quickstart   the whole main job on real weights and text, on a laptop's CPU
#   make test         the tests
#   make planner      adds the TPU compiler that `dlm plan` asks
#   make check        format, lint, types and floors
#   make benchmark    the figures; BENCHMARKS="train_step" runs some of them

PYTHON ?= python3
VENV ?= .venv
# Where Linux takes torch (tests and benchmarks only) from: PyPI's file brings gigabytes of CUDA.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PYTEST_ARGS ?= -n 2
BENCHMARKS ?= train_step decode cached_decode pretrained_vs_random head_memory lean_optimizer kill_and_restart plan_sizes

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INPUTS := setup.py pyproject.toml constraints.txt
VERSION_CHECK := 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) \
	else "error: dlm_jax needs Python 3.11, 3.12 or 3.13 and %s is %d.%d; name another one: make PYTHON=python3.12" \
	% (sys.executable, *v))'

# TensorFlow only reads data here: what it and gRPC say about missing accelerators is noise.
export TF_CPP_MIN_LOG_LEVEL ?= 3
export GRPC_VERBOSITY ?= NONE
export TOKENIZERS_PARALLELISM ?= false
export PYTHONUNBUFFERED ?= 1

.DEFAULT_GOAL := help
.PHONY: help quickstart planner test check format lint types floors benchmark clean

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "error: there is no $(PYTHON); name a Python 3.11-3.13: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c $(VERSION_CHECK)
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The stamps make a second call instant; [dev] holds everything that the quickstart needs.
$(VENV)/.quickstart: $(INPUTS) | $(BIN)/python
	@$(BIN)/python -c $(VERSION_CHECK)
	$(PIP) install --constraint constraints.txt --editable '.[quickstart]'
	@touch $@

$(VENV)/.dev: $(INPUTS) | $(BIN)/python
	@$(BIN)/python -c $(VERSION_CHECK)
	@if [ "$$(uname -s)" = Linux ] && [ -n "$(TORCH_INDEX)" ] && ! $(PIP) show --quiet torch 2>/dev/null; then \
		$(PIP) --retries 0 install --quiet --no-deps --constraint constraints.txt \
			--index-url $(TORCH_INDEX) torch \
		|| echo "note: $(TORCH_INDEX) gave no torch; the package index's own follows, perhaps with CUDA"; fi
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $(VENV)/.quickstart $@

quickstart: $(VENV)/.quickstart
	@$(BIN)/python -m dlm_jax.cli quickstart

planner: $(VENV)/.quickstart
	$(PIP) install --constraint constraints.txt --editable '.[plan]'

test: $(VENV)/.dev
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: format lint types floors

format: $(VENV)/.dev
	@$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	@$(BIN)/ruff check .

types: $(VENV)/.dev
	@$(BIN)/mypy

floors: $(VENV)/.dev
	@$(BIN)/lint-imports

benchmark: $(VENV)/.dev
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info
