# Every command of the project stands here once; .ci/run and the pre-commit hooks call these targets.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Each step wants the whole machine but those of one process, of which `test`, `versions` and `conform` run two at a time.
ifndef SIDE_BY_SIDE
.NOTPARALLEL:
endif

ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	done; echo $$python)
endif

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEMO := $(VENV)/.installed-demo
INSTALLED_DOCS := $(VENV)/.installed-docs
RESULTS := build/results
WHEEL_VENV := build/wheel-venv

# Waiting OpenMP threads of torch would spin on the cores that the other processes of a run need.
export OMP_WAIT_POLICY ?= PASSIVE

# Which rules and pairs are tested deeply, where others are not: those of another commit are others. `make test TURN=5` chooses,
# and TURN=all has all, which takes hours. All parts of a run have that of its start.
ifndef TURN
TURN := $(shell echo $$((0x$$( (git rev-parse --quiet --verify HEAD 2>/dev/null || echo 0) | cut -c 1-7))))
endif
export TURN
export PORTOPT_TESTS_TURN = $(TURN)

# For example: make unit PYTEST_ARGS="-m 'not slow' -k adam"
PYTEST_ARGS ?=
# A folder of tests.
WING ?=
CONFORM_ARGS ?=
COMPARE_ARGS ?=
FUZZ_ARGS ?=
HOUSE_ARGS ?=

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(INSTALLED) ## create .venv with everything that is tested

$(INSTALLED): EXTRAS := torch,jax,demo,test
$(INSTALLED_DEMO): EXTRAS := torch,jax,demo,fused
$(INSTALLED) $(INSTALLED_DEMO): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "portopt needs Python 3.11 or newer, but '$(PYTHON)' is" \
	        "$$($(PYTHON) -c 'import sys; print(sys.version.split()[0])' 2>/dev/null || echo 'not a Python that runs')." \
	        "Name another: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
# What the tests need has what the demo needs.
	@touch $@ $(INSTALLED_DEMO)

.PHONY: demo
demo: $(INSTALLED_DEMO) ## train with every installed backend and compare the bits; writes report/
	$(BIN)/portopt compare --out report $(COMPARE_ARGS)

.PHONY: test
test: alone speed unit conform ## everything that must hold

# What one process does, and as such the environments: while $(VENV) is installed, those of other versions are, and tested. All
# output of a step stands where it ends.
.PHONY: alone
alone:
	$(MAKE) SIDE_BY_SIDE=1 -j 2 --output-sync=target lint mypy basedpyright doctest $(VERSIONS) wheel

.PHONY: lint
lint: $(INSTALLED) ## check formatting, lint rules, and who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python scripts/check_private_names.py src backends conformance
	$(BIN)/lint-imports --no-logo --cache-dir build/import-linter

.PHONY: format
format: $(INSTALLED) ## rewrite the files as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: mypy basedpyright ## check types, strictly

.PHONY: mypy basedpyright
mypy: $(INSTALLED)
	$(BIN)/mypy

basedpyright: $(INSTALLED)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

.PHONY: unit
unit: $(INSTALLED) ## run the unit tests, or those of one wing: make unit WING=kernels
	$(BIN)/python -m pytest -n 2 --dist worksteal --junitxml=$(RESULTS)/unit.xml $(PYTEST_ARGS) \
	    $(or $(WING:%=tests/%),--ignore=tests/docs/test_docs.py)

# Users do not set how waiting threads wait.
.PHONY: speed
speed: $(INSTALLED) ## check that what is promised to be fast is not half as fast as that
	@rm -f $(RESULTS)/speed.json
	env -u OMP_WAIT_POLICY $(BIN)/python scripts/check_speed.py --out $(RESULTS)/speed.json

.PHONY: doctest
doctest: $(INSTALLED) ## run the examples in docstrings, README and docs/
	$(BIN)/python -m pytest --doctest-modules src backends tests/docs/test_docs.py \
	    --junitxml=$(RESULTS)/doctest.xml $(PYTEST_ARGS)

REQUIRED_BACKENDS := conform-jax-compiled conform-jax-eager conform-numpy conform-array_api_strict conform-torch
GPU_BACKENDS := conform-cupy conform-torch-cuda

.PHONY: conform
conform: $(INSTALLED) ## run the conformance suite, one process per backend
	$(MAKE) SIDE_BY_SIDE=1 -j 2 --output-sync=target $(REQUIRED_BACKENDS) $(GPU_BACKENDS)

.PHONY: conform-full
conform-full: ## the same with every rule in every mode, where otherwise they take turns; takes hours
	$(MAKE) conform TURN=all

CONFORM = $(BIN)/python -m portopt_conformance $(if $(filter all,$(TURN)),--full,--turn $(TURN)) --json $(RESULTS)/$@.json $(CONFORM_ARGS)

# JAX takes longer than all others together, so that the layer of its compiled modes has a process of its own.
BACKEND = $*
LAYERS :=
conform-jax-eager conform-jax-compiled: BACKEND := jax
conform-jax-eager: LAYERS := 0 1 2 3 4
conform-jax-compiled: LAYERS := 5

# A file of an earlier run must not count as this one's result.
.PHONY: $(REQUIRED_BACKENDS)
$(REQUIRED_BACKENDS): conform-%: $(INSTALLED)
	@mkdir -p $(RESULTS) && rm -f $(RESULTS)/$@.json
	$(CONFORM) --backend $(BACKEND) $(LAYERS:%=--layer %)

.PHONY: conform-cupy
conform-cupy: $(INSTALLED)
	@mkdir -p $(RESULTS) && rm -f $(RESULTS)/$@.json
	$(CONFORM) --backend cupy --if-available

.PHONY: conform-torch-cuda
conform-torch-cuda: $(INSTALLED)
	@mkdir -p $(RESULTS) && rm -f $(RESULTS)/$@.json
	$(CONFORM) --backend torch --device cuda --if-available

# Other versions than those of .venv, each in an environment of its own. WITHOUT names the libraries that it lacks on purpose, and
# the tests that need one are left out; whatever else is missing is an error.

VERSIONS := test-minimal test-lowest test-newest
JAX_VERSIONS := test-lowest-jax test-newest-jax
FRAMEWORKS := torch jax jaxlib optax keras tensorflow tf_keras equinox flax lightning cupy sklearn matplotlib
BUT_JAX := $(filter-out jax jaxlib optax,$(FRAMEWORKS))
VERSION_TOOLS := array-api-strict hatchling hypothesis pytest pytest-timeout
# For example: make test-lowest VERSION_TESTS=tests runs all that such an environment can.
VERSION_TESTS ?= $(addprefix tests/,$(addsuffix .py,\
	backends/test_backends checkpoints/test_checkpoint_safety core/test_configuration kernels/test_kernel_cache \
	rules/test_rules tools/test_command_line tools/test_show))
JAX_VERSION_TESTS ?= $(VERSION_TESTS) $(addprefix tests/,$(addsuffix .py,\
	adapters/test_optax backends/test_jax_transformations kernels/test_jax_kernel program/test_elementary))

NEWEST_PYTHON ?= $(shell for python in python3.14 python3.13 $$(pyenv prefix 3.13 2>/dev/null)/bin/python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)

test-minimal: WITHOUT := $(FRAMEWORKS) numba
test-lowest test-newest: WITHOUT := $(FRAMEWORKS)
test-lowest-jax test-newest-jax: WITHOUT := $(BUT_JAX)
test-lowest-jax test-newest-jax: VERSION_TESTS := $(JAX_VERSION_TESTS)
VERSION_PYTHON = $(PYTHON)
build/minimal-venv/.installed: REQUIRED := pinned checkpoints
build/lowest-venv/.installed: REQUIRED := lowest checkpoints fused
build/newest-venv/.installed: REQUIRED := newest checkpoints fused
build/lowest-jax-venv/.installed: REQUIRED := lowest checkpoints fused jax optax
build/newest-jax-venv/.installed: REQUIRED := newest checkpoints fused jax optax
# What jax.export writes files with.
build/lowest-jax-venv/.installed build/newest-jax-venv/.installed: VERSION_TOOLS += flatbuffers
build/newest-venv/.installed build/newest-jax-venv/.installed: VERSION_PYTHON = $(NEWEST_PYTHON)

.PHONY: versions
versions: ## run quick tests without frameworks, with the lowest and with the newest versions
	$(MAKE) SIDE_BY_SIDE=1 -j 2 --output-sync=target $(VERSIONS)

.PHONY: $(VERSIONS) $(JAX_VERSIONS)
$(VERSIONS) $(JAX_VERSIONS): test-%: build/%-venv/.installed
	@mkdir -p $(RESULTS) && rm -f $(RESULTS)/$@.xml
	@test -x build/$*-venv/bin/python || { echo 'NOT RUN: there is no Python 3.13 or newer: make NEWEST_PYTHON=... $@'; exit; } && \
	    PORTOPT_TESTS_WITHOUT='$(WITHOUT)' build/$*-venv/bin/python -m pytest -m 'not slow' --ignore=tests/docs/test_docs.py \
	    --junitxml=$(RESULTS)/$@.xml $(PYTEST_ARGS) $(VERSION_TESTS)

build/%-venv/.installed: pyproject.toml constraints.txt scripts/version_requirements.py
	@rm -rf $(@D) && mkdir -p $(@D)
	@python='$(VERSION_PYTHON)'; test -n "$$python" || exit 0; set -e; \
	    $$python -m venv $(@D); \
	    $(@D)/bin/python scripts/version_requirements.py $(REQUIRED) --tools $(VERSION_TOOLS) > $(@D)/requirements.txt; \
	    $(@D)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r $(@D)/requirements.txt; \
	    $(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	    touch $@

# On a machine with a CUDA driver, libraries for its version in an environment of their own, for those of .venv are for the CPU;
# torch's releases are each built for one version. Without a driver what needs no GPU runs in .venv.
CUDA := $(shell $(PYTHON) backends/portopt_cupy/_driver.py 2>/dev/null)
GPU_VENV := build/gpu-cuda$(CUDA)
GPU_LIBRARIES_12 := 'torch>=2.8,<2.11' 'jax[cuda12]' 'portopt[cupy-cuda12x]'
GPU_LIBRARIES_13 := 'torch>=2.11' 'jax[cuda13]' 'portopt[cupy-cuda13x]'
GPU_INSTALLED := $(if $(CUDA),$(GPU_VENV)/.installed,$(INSTALLED))
GPU_BIN = $(if $(CUDA),$(GPU_VENV)/bin,$(BIN))
# For example: make gpu GPU_CHECK_ARGS="--sections timings"
GPU_CHECK_ARGS ?= --budget 1800

.PHONY: gpu
gpu: $(GPU_INSTALLED) ## check everything on this machine's GPU, and write docs/gpu-results.md; without one, all that needs none
	$(GPU_BIN)/python scripts/check_gpu.py --out $(RESULTS)/gpu --page docs/gpu-results.md $(GPU_CHECK_ARGS)

$(GPU_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --disable-pip-version-check -e '.[fused,optax,checkpoints]' $(GPU_LIBRARIES_$(CUDA)) \
	    hypothesis pytest pytest-timeout
	@touch $@

# Compilers that are not in .venv, each in a folder of its own: XLA's for GPUs, and NVRTC of CUDA 13.
COMPILERS := build/compilers
XLA_GPU := $(COMPILERS)/xla/.installed
NVRTC_13 := $(COMPILERS)/nvrtc-13/.installed
# Newer than some of what is pinned for the tests of the CPU, which is what this is for.
PIP_NEWEST := -m pip install --quiet --disable-pip-version-check

.PHONY: gpu-static
gpu-static: $(INSTALLED) $(XLA_GPU) $(NVRTC_13) ## look at what GPU compilers make of steps, without a GPU
	$(COMPILERS)/xla/bin/python -m pytest tests/cases/xla_gpu_compiled.py --junitxml=$(RESULTS)/gpu-static-xla.xml $(PYTEST_ARGS)
	$(COMPILERS)/nvrtc-13/bin/python -m pytest tests/kernels/test_cuda_source.py -k 'ptx or inexact or machine' \
	    --junitxml=$(RESULTS)/gpu-static-nvrtc.xml $(PYTEST_ARGS)

# With the newest Python that there is: older ones get no new JAX.
$(XLA_GPU): pyproject.toml
	$(or $(NEWEST_PYTHON),$(PYTHON)) -m venv --clear $(COMPILERS)/xla
	$(COMPILERS)/xla/bin/python $(PIP_NEWEST) -e '.[fused]' jax jax-cuda13-plugin ml-dtypes hypothesis pytest pytest-timeout
	@touch $@

$(NVRTC_13): pyproject.toml
	$(PYTHON) -m venv --clear $(COMPILERS)/nvrtc-13
	$(COMPILERS)/nvrtc-13/bin/python $(PIP_NEWEST) -e . cupy-cuda13x 'nvidia-cuda-nvrtc==13.0.*' ml-dtypes hypothesis pytest pytest-timeout
	@touch $@

.PHONY: wheel
wheel: $(INSTALLED) ## build the wheel and use it from an empty environment
	@mkdir -p $(RESULTS) && rm -rf dist $(WHEEL_VENV) $(RESULTS)/conform-wheel.json
	$(BIN)/python -m build --wheel --no-isolation
	$(BIN)/python -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt dist/*.whl
	cd / && '$(CURDIR)/$(WHEEL_VENV)/bin/python' '$(CURDIR)/scripts/check_wheel.py' \
	    --json '$(CURDIR)/$(RESULTS)/conform-wheel.json'

MINUTES ?= 60

.PHONY: fuzz
fuzz: $(INSTALLED) ## random steps against the interpreter, for MINUTES=60; FUZZ_ARGS="--episode 7" runs one again
	PYTHONPATH=tests $(BIN)/python -m fuzzing --minutes $(MINUTES) $(FUZZ_ARGS)

.PHONY: vectors
vectors: $(INSTALLED) ## regenerate the conformance suite's committed vectors, or one rule's: make vectors RULE=Adam
	$(BIN)/python -m portopt_conformance.vectors $(RULE:%=--rule %)

.PHONY: api
api: $(INSTALLED) ## rewrite docs/dialects.md from the code
	$(BIN)/python scripts/make_dialect_tables.py

.PHONY: house
house: $(INSTALLED) ## measure rooms, floors, circles of imports, large files, duplicates; HOUSE_ARGS="--details --root PATH"
	$(BIN)/python scripts/measure_house.py $(HOUSE_ARGS)

.PHONY: docs
docs: $(INSTALLED_DOCS) ## build the documentation as a web site in build/site, strictly, and check it
	$(BIN)/mkdocs build --strict
	$(BIN)/python scripts/check_website.py build/site

$(INSTALLED_DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

.PHONY: clean
clean: ## remove everything that these targets write
	rm -rf $(VENV) build dist report .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src backends conformance tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
