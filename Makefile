# `make` lists the targets. Nothing but make and Python 3.11-3.13 is needed: the first target that
# runs Python creates .venv and installs into it; later calls find it up to date.

PYTHON ?=
VENV   := .venv
PY     := $(VENV)/bin/python
# The stamp's name holds a checksum of what decides the environment's content, so that a fresh
# checkout's file times never cause an installation, and an edited list always does.
SUM    := $(shell { cat pyproject.toml tools/bootstrap.sh; echo "$(PYTHON)"; } | cksum | tr ' ' '-')
STAMP  := $(VENV)/.installed-$(SUM)
# The browser that tests the labelling page: looked for, or installed, once per environment.
BROWSER := $(VENV)/.browser-$(shell cksum < tools/install_browser.sh | tr ' ' '-')
# Two workers suit two cores; `make test JOBS=8` uses more.
JOBS   ?= 2
# The test processes share the cores: one thread each, in BLAS too. They share what they compile as
# well, with each other and with the next run. Most programs run for less time than it takes to
# compile them: LLVM is told to hurry. A file's tests share what they set up, so one process has all.
PYTEST := XLA_FLAGS=--xla_backend_optimization_level=0 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
          JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.jax_cache \
          JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.1 \
          $(PY) -m pytest -q -n $(JOBS) --dist loadfile

# Else every test process compiles for itself what pytest and the tests import.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP):
	@PYTHON="$(PYTHON)" sh tools/bootstrap.sh $(@D)
	@rm -f $(@D)/.installed-*
	@touch $@

.venv-tpu/.installed-$(SUM):
	@PYTHON="$(PYTHON)" EXTRAS=tpu sh tools/bootstrap.sh $(@D)
	@rm -f $(@D)/.installed-*
	@touch $@

PARITY := .venv-parity/.installed-$(SUM)
$(PARITY):
	@PYTHON="$(PYTHON)" EXTRAS=parity sh tools/bootstrap.sh $(@D)
	@rm -f $(@D)/.installed-*
	@touch $@

.PHONY: .venv-parity
.venv-parity: $(PARITY)

$(BROWSER): $(STAMP)
	@sh tools/install_browser.sh $(@D)
	@rm -f $(@D)/.browser-*
	@touch $@

.PHONY: install
install: $(STAMP)  ## Create .venv: JAX for the GPU where nvidia-smi answers, for the CPU elsewhere

.PHONY: demo
demo: $(STAMP)  ## Train and evaluate a small CLIP on the demo world (minutes on two cores)
	$(PY) -m clipdg_jax.main --config=configs/mix.py

.PHONY: study
study: $(STAMP)  ## The study of the README: every mix, every seed (over an hour on two cores)
	$(PY) -m clipdg_jax.main --config=configs/sweep.py:study --config.parallel=2
	$(PY) -m clipdg_jax.main --config=configs/report.py:study

.PHONY: sweep
sweep: $(STAMP)  ## Seven ratios, controls, three seeds, and their report (an hour on two cores)
	$(PY) -m clipdg_jax.main --config=configs/sweep.py:demo --config.parallel=2
	$(PY) -m clipdg_jax.main --config=configs/report.py

.PHONY: domain-study
domain-study: $(STAMP)  ## The study of domain classifiers: every method, five seeds, worse and fewer labels
	$(PY) -m tools.domain_study --parallel=2

.PHONY: lint
lint: $(STAMP)  ## Style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

.PHONY: format
format: $(STAMP)  ## Rewrite the code in the house style
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

.PHONY: test
test: lint $(BROWSER)  ## Lint, types and the tests (under ten minutes on two cores)
	$(PYTEST) -m "not full and not gpu"

.PHONY: test-full
test-full: lint $(BROWSER)  ## Also the slow tests: kill campaigns, several seeds, full-size parity
	$(PYTEST) -m "not gpu"

# `make bench PEERS=1` runs open_clip beside us, in an environment of its own.
PEERS ?=
.PHONY: bench
bench: $(STAMP) $(if $(PEERS),$(PARITY))  ## How fast it is, in five minutes; PEERS=1: beside open_clip
	$(PY) -m tools.bench $(if $(PEERS),--peer_python=$(CURDIR)/.venv-parity/bin/python)

.PHONY: bench-loader
bench-loader: $(STAMP)  ## Loader throughput on this machine
	$(PY) -m tools.bench_loader

.PHONY: check-tpu
check-tpu: .venv-tpu/.installed-$(SUM)  ## Compile the paper's training step for TPUs, without one (minutes; own .venv-tpu)
	.venv-tpu/bin/python -m tools.check_tpu

.PHONY: parity
parity: $(PARITY)  ## Compare with open_clip at full size, live (own .venv-parity with torch)
	.venv-parity/bin/python -m tools.parity

.PHONY: clean
clean:  ## Remove the environments and caches; runs/ and data/ stay
	rm -rf .venv .venv-tpu .venv-parity build *.egg-info .pytest_cache .mypy_cache .ruff_cache .jax_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
