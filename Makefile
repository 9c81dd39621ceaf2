# `make demo` and `make test` set up everything they need in .venv, from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# TensorRT's Python bindings without its libraries, and Triton's messages without what speaks with servers: what the
# conformance and serving tests hold the code against.
BINDINGS := build/bindings/.installed
CORPUS := build/corpus/.installed

# PyCUDA is built from source, against an empty libcuda.so where there is no driver.
PYCUDA := build/pycuda/.installed
CUDA_ROOT = $(shell nvcc --dryrun -E -x cu /dev/null 2>&1 | sed -n 's/^.*TOP=//p')

.PHONY: demo test corpus ray soak fuzz rehearsal gpu-check lint install bindings format clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --group dev --editable '.[export,report,rtx]'
	touch $@

bindings: $(BINDINGS)

$(BINDINGS): $(STAMP)
	$(PIP) --no-deps --upgrade --target build/bindings/tensorrt-10 tensorrt-cu12-bindings
	$(PIP) --no-deps --upgrade --target build/bindings/tensorrt-11 tensorrt-cu13-bindings
	$(PIP) --no-deps --upgrade --target build/bindings/triton tritonclient
	touch $@

# Pillow's own test images, many of them broken on purpose: what decoding is held against.
corpus: $(CORPUS)

$(CORPUS): $(STAMP)
	rm -rf build/corpus && mkdir -p build/corpus
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --constraint constraints.txt --no-deps \
	  --no-binary pillow --dest build/corpus pillow
	tar xzf build/corpus/pillow-*.tar.gz --strip-components=3 -C build/corpus --wildcards 'pillow-*/Tests/images/*'
	rm build/corpus/pillow-*.tar.gz
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
test: lint bindings corpus
	OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n auto

# Runs over a cluster of this machine, with Ray itself.
ray: install
	$(PIP) --editable '.[ray]'
	$(BIN)/pytest tests/distributed

# The long form of the fault tests: runs that are killed at random until the time is over. It ends with a table of counts.
soak: install
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),30)

# PyCUDA and cuda-bindings themselves on an emulated driver: needs nvcc and g++, but no GPU.
rehearsal: $(PYCUDA)
	$(BIN)/pytest tests/cuda

$(PYCUDA): $(STAMP)
	rm -rf build/pycuda && mkdir -p build/pycuda/driver
	$(PIP) cuda-bindings nvidia-cuda-nvrtc nvidia-nvimgcodec-cu13 nvtx mako platformdirs pytools setuptools wheel
	$(BIN)/python -m pip download --quiet --constraint constraints.txt --no-deps --no-build-isolation \
	  --no-binary pycuda --dest build/pycuda pycuda
	tar xzf build/pycuda/pycuda-*.tar.gz --strip-components=1 -C build/pycuda
	g++ -shared -x c++ /dev/null -o build/pycuda/driver/libcuda.so
	cd build/pycuda && ../../$(BIN)/python configure.py --cuda-root=$(CUDA_ROOT) --no-cuda-enable-curand \
	  --cudadrv-lib-dir=$(CURDIR)/build/pycuda/driver
	$(PIP) --no-deps --no-build-isolation build/pycuda
	touch $@

# The tests that need an NVIDIA GPU; elsewhere each says what it lacks. With IMAGES=DIR, the benchmark too.
gpu-check: install
	$(BIN)/pytest -m gpu
	$(if $(IMAGES),$(BIN)/python benchmarks/gpu_pipeline.py --images $(IMAGES))

# Searches, SECONDS for each target (TARGETS, or all), for files that what reads strangers' files does not stand.
SECONDS ?= 120
fuzz: install
	$(PIP) --group fuzz
	nice -n 10 $(BIN)/python -m tests.fuzz.run --seconds $(SECONDS) $(TARGETS)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist engines/built .mypy_cache .pytest_cache .ruff_cache
