# `make demo` and `make test` set up everything they need in .venv, from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# TensorRT's Python bindings without its libraries: what the conformance tests hold the code against.
BINDINGS := build/bindings/.installed

.PHONY: demo test gpu-check lint install bindings format clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --group dev --editable '.[export,rtx]'
	touch $@

bindings: $(BINDINGS)

$(BINDINGS): $(STAMP)
	$(PIP) --no-deps --upgrade --target build/bindings/tensorrt-10 tensorrt-cu12-bindings
	$(PIP) --no-deps --upgrade --target build/bindings/tensorrt-11 tensorrt-cu13-bindings
	touch $@

demo: install
	$(BIN)/trt-vit build-engine engines/vit-cifar10-fp32.yaml
	$(BIN)/trt-vit classify engines/built/vit-cifar10-fp32 --pipeline pipelines/cifar10-samples.yaml
	$(BIN)/python examples/top1_by_folder.py build/demo/predictions.jsonl

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A worker a core: products of numpy on several threads each would only wait for one another.
test: lint bindings
	OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n auto

# The tests that need an NVIDIA GPU; elsewhere each says what it lacks.
gpu-check: install
	$(BIN)/pytest -m gpu

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist engines/built .mypy_cache .pytest_cache .ruff_cache
