# Each verb does all set-up it needs: Linux with Python 3.10 or newer, its venv module, and g++.
PYTHON ?= python3
VENV ?= .venv
# Beside what pyproject.toml pins in its extra `dev`; the build requirements are needed before it.
TORCH := torch==2.14.1 torchvision==0.29.1
BUILD_REQUIREMENTS := setuptools==84.2.1 cmake==4.4.4 ninja==1.13.2 pybind11==3.1.0

# Kernels that the tests of the PTX machine compile. Without dependencies: sources are all they take.
FOREIGN := fla-core==0.6.0 flag-gems==5.0.2 liger-kernel==0.8.5 nvidia-cutlass==4.2.0.0

# Two test processes of one OpenMP thread each: more than cores would spin while others wait.
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(JOBS)

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CPP_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CMAKE_TESTS = $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
  -DEFFNET_FAST_PYTHON=OFF -DEFFNET_FAST_TESTS=ON -DEFFNET_FAST_WERROR=ON

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-ptx test test-full cpp-test neon-test sanitize lint format coverage-table labels clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s%s\n", $$1, $$2}'

venv: $(STAMP)  ## make the environment in .venv, build and install the package in it

# Again when the build files or a C++ source change; the package itself is installed in place.
$(STAMP): pyproject.toml setup.py CMakeLists.txt Makefile $(CPP_SOURCES)
	@command -v $(PYTHON) > /dev/null || { echo "make: no $(PYTHON); install Python 3.10 or newer, or say PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: $$($(PYTHON) --version) is too old; 3.10 or newer is needed, say PYTHON=..."; exit 1; }
	@command -v $${CXX:-g++} > /dev/null || { echo "make: no $${CXX:-g++}; install a C++17 compiler (Debian, Ubuntu: apt-get install g++)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "make: $(PYTHON) has no venv module (Debian, Ubuntu: apt-get install python3-venv)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH) $(BUILD_REQUIREMENTS)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(FOREIGN)
	touch $@

demo: $(STAMP)  ## classify three photos with trained weights, check and time against the stock model
	$(BIN)/python -m effnet_fast.demo

demo-ptx: $(STAMP)  ## the same photos in float16 through the GPU engine, on the PTX machine
	$(BIN)/python -m effnet_fast.demo --backend ptx

test: $(STAMP) cpp-test  ## the tests, 15 minutes at most on two cores
	$(PYTEST)

test-full: $(STAMP)  ## the tests that take long, 60 minutes at most
	$(PYTEST) -m full

cpp-test: $(STAMP)  ## the C++ tests
	$(CMAKE_TESTS) -B build/tests
	$(BIN)/cmake --build build/tests
	build/tests/effnet_fast_tests

# All of them but two of the thread pool's, which fork: qemu-user starts no thread in such a child.
neon-test: $(STAMP)  ## the C++ tests for aarch64, cross-compiled and emulated
	@for tool in aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$tool > /dev/null || { echo "make: no $$tool (Debian, Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user)"; exit 1; }; done
	$(CMAKE_TESTS) -B build/neon -DCMAKE_TOOLCHAIN_FILE=csrc/aarch64.cmake
	$(BIN)/cmake --build build/neon
	$(BIN)/ctest --test-dir build/neon --verbose --timeout 900

# The broken PTX takes a minute; build/sanitize/fuzz_ptx csrc/tests/ptx --seed 2 --seconds 3600 more.
sanitize: $(STAMP)  ## the C++ tests, and broken PTX, under the address and UB sanitizers
	$(CMAKE_TESTS) -B build/sanitize -DEFFNET_FAST_SANITIZE=address,undefined,float-cast-overflow
	$(BIN)/cmake --build build/sanitize
	build/sanitize/effnet_fast_tests
	build/sanitize/fuzz_ptx csrc/tests/ptx --inputs 30000

lint: $(STAMP)  ## ruff and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)

format: $(STAMP)  ## ruff and clang-format, in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_SOURCES)

coverage-table: $(STAMP)  ## docs/coverage.md: every model that was tried, with what is fused
	$(BIN)/python -m effnet_fast.bench.coverage --output docs/coverage.md --jobs $(JOBS)

labels: $(STAMP)  ## the class names that `classify` prints, from torchvision's
	$(BIN)/python scripts/make_labels.py effnet_fast/classify/imagenet_classes.txt

clean:  ## remove what was built, and the environment
	rm -rf build $(VENV)
