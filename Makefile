# Every target sets up what it needs: a virtual environment with the versions of constraints.txt, and
# fastvision built into it from this tree. Only Python, a C++ compiler and make have to be there.
#
#   make test PYTHON=python3.12             with another Python, in an environment of its own
#   make bench BENCH_ARGS="--op nms"        see python -m benchmarks.run --help
#   make test TEST_PROCESSES=               in one process
#   make test-gpu PYTEST_ARGS="-k roi_align"
#   make gpu-record GPU_RECORD_ARGS="--minutes 6"
#   make fuzz INPUTS=100000 FUZZ_ARGS="--op nms"   inputs of each op, or of one, under the sanitizers
#   make test-thirdparty PYTEST_ARGS="--sample 12"   of an hour's work a part that changes with the date
#
# nvcc is used where it is found; FASTVISION_CUDA=0 and FASTVISION_CUDA_ARCHS="80;90" are handed through.

PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
VENV_PYTHON := $(VENV)/bin/python
BENCH_ARGS ?=
PYTEST_ARGS ?=
# each takes up to 3 GB; a file's tests run in one process, since they share what they compile;
# files begin in the order of tests/conftest.py, not by their number of tests
TEST_PROCESSES ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
GPU_RECORD_ARGS ?=
INPUTS ?= 1000
FUZZ_ARGS ?=

BUILD_TOOLS := "setuptools>=77" "cmake>=3.25" ninja "pybind11>=2.13"
SOURCES := pyproject.toml setup.py CMakeLists.txt $(wildcard csrc csrc/* csrc/*/*)
CXX_SOURCES = $(shell git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# the build calls cmake and ninja by name
export PATH := $(abspath $(VENV)/bin):$(PATH)

.PHONY: help build bench bench-report gpu-record test test-gpu test-thirdparty fuzz sanitize-gpu wheel docs lint clean

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))
	@echo "targets: build bench bench-report gpu-record test test-gpu test-thirdparty fuzz sanitize-gpu wheel docs lint clean"

$(VENV)/.tools: constraints.txt
	test -x $(VENV_PYTHON) || $(PYTHON) -m venv $(VENV)
	$(VENV_PYTHON) -m pip install -c constraints.txt torch torchvision $(BUILD_TOOLS)
	touch $@

# no isolation: an isolated build would download a torch of its own for its headers
$(VENV)/.built: $(VENV)/.tools $(SOURCES)
	$(VENV_PYTHON) -m pip install -c constraints.txt --no-build-isolation -e ".[test,bench,dev,train]"
	touch $@

build: $(VENV)/.built

bench: build
	$(VENV_PYTHON) -m benchmarks.run $(BENCH_ARGS)

# report, plots and README's tables from the records that are there; nothing is measured
bench-report: build
	$(VENV_PYTHON) -m benchmarks.report --readme

test: build
	$(VENV_PYTHON) -m pytest $(TEST_PROCESSES) $(PYTEST_ARGS)

# those that ask for another OpenCV or an older torchvision come without what they ask for
$(VENV)/.thirdparty: $(VENV)/.built
	$(VENV_PYTHON) -m pip install -c constraints.txt timm scikit-image omegaconf \
	  opencv-contrib-python-headless psutil polars requests pyyaml onnx onnxscript
	$(VENV_PYTHON) -m pip install --no-deps ultralytics ultralytics-thop segmentation-models-pytorch effdet \
	  facenet-pytorch pycocotools
	touch $@

test-thirdparty: $(VENV)/.thirdparty
	$(VENV_PYTHON) -m pytest tests/thirdparty $(PYTEST_ARGS)

test-gpu: build
	$(VENV_PYTHON) scripts/test_gpu.py $(PYTEST_ARGS)

# builds for this GPU against the torch that is there, without a network; a stop leaves what was measured
gpu-record:
	$(PYTHON) scripts/gpu_record.py $(GPU_RECORD_ARGS)

# faults end only the fuzzing of their op
fuzz: build
	PYTHONPATH=tests $(VENV_PYTHON) -m sanitizer --inputs $(INPUTS) $(FUZZ_ARGS)

# slow: pick tests with PYTEST_ARGS="-k ..."
sanitize-gpu: build
	compute-sanitizer --error-exitcode 1 $(VENV_PYTHON) -m pytest -m gpu $(PYTEST_ARGS)

wheel: build
	rm -rf build/lib.* build/bdist.* dist wheelhouse
	$(VENV_PYTHON) -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .
	$(VENV_PYTHON) -m auditwheel repair --exclude libtorch.so --wheel-dir wheelhouse dist/*.whl

$(VENV)/.docs: $(VENV)/.built
	$(VENV_PYTHON) -m pip install -c constraints.txt "fastvision[docs]"
	touch $@

# from scratch: an incremental build repeats no warning
docs: $(VENV)/.docs
	$(VENV_PYTHON) -m sphinx -q -E -W --keep-going docs build/docs

lint: build
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(VENV_PYTHON) -m mypy

clean:
	rm -rf build dist wheelhouse *.egg-info fastvision/*.so $(VENV)/.built $(VENV)/.thirdparty $(VENV)/.docs
