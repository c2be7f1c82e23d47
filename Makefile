# Every target sets up what it needs in .venv; nothing but Python (>= 3.11), pip and make is assumed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# laplace-torch, which a test compares with, and what it imports. Without their dependencies: torchvision, which it names
# and does not need, would bring a CUDA build of torch.
ORACLE := laplace-torch asdfghjkl backpack-for-pytorch curvlinops-for-pytorch einconv einops jaxtyping linear_operator \
	opt-einsum unfoldNd wadler-lindig
# One thread a process: two threads beside a busy neighbour are slower than one.
export OMP_NUM_THREADS ?= 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: setup demo test test-fast test-triton lint format real bench clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	@echo "setting up $(VENV) with $(PYTHON) (once; a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(ORACLE)
	@touch $@

demo: setup
	$(BIN)/abmll demo --output runs/demo --overwrite

test: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# The GPU kernels: through Triton's interpreter on a CPU, and on a GPU where there is one. Triton is 1 GB, once.
test-triton: setup
	$(PIP) -e '.[triton]'
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/ops/test_triton.py tests/ops/test_triton_compile.py -rs

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

real: setup
	$(BIN)/python benchmarks/real.py

bench: setup
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
