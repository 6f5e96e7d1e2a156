# `make demo` and `make test` need nothing before them but Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := agent ingest metadata storage runtime autoscaler tidelog tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help env demo demo-cluster test soak faults check static fmt docs bench fuzz requirements

help:
	@echo "make demo    ship a real log through Tidelog and watch it come out (DEMO_SECONDS=60)"
	@echo "make demo-cluster  three zones and two groups under load, two processes killed, every line counted"
	@echo "make test    every test; installs what it may (Debian packages only in CI), says what it skipped"
	@echo "make check   the gate: format, lint, types, import contracts, generated docs, fast tests"
	@echo "make static  the gate without its tests: what CI runs before make test"
	@echo "make bench   one table of speed ratios against peers and raw limits"
	@echo "make soak    simulated clusters, broken and judged, on all cores (SEEDS=10000 FIRST_SEED=0)"
	@echo "make faults  every fault of a cluster and every two together, 30 s each: an hour and a half"
	@echo "make fuzz    the fuzz tests, longer (FUZZ_EXAMPLES=20000)"
	@echo "make env     .venv with .venv/bin/tidelog"
	@echo "make docs    regenerate the reference pages in docs/ from the code"
	@echo "make fmt     format, and mend what lint can mend"

PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
env: $(VENV)/.ready

$(VENV)/.ready: requirements/base.txt requirements/build.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Tidelog needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make env PYTHON=python3.11"; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing the pinned, hashed requirements into $(VENV) (about a minute the first time)"
	@$(PIP) --require-hashes -r requirements/build.txt
	@$(PIP) --require-hashes -r requirements/base.txt
	@PYTHONWARNINGS=ignore $(PIP) --no-deps --no-build-isolation -e .
	@touch $@
	@echo "ready: . $(BIN)/activate && tidelog up"

$(VENV)/.dev: $(VENV)/.ready requirements/dev.txt
	@echo "installing the development requirements into $(VENV)"
	@$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@

demo: env
	@$(BIN)/tidelog demo --seconds $${DEMO_SECONDS:-60}

demo-cluster: env
	@$(BIN)/tidelog cluster demo --seconds $${DEMO_SECONDS:-60}

check: static
	$(BIN)/pytest -q tests/unit tests/contract tests/property

static: $(VENV)/.dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tidelog.docs --check

test: $(VENV)/.dev
	@$(BIN)/python -m tests.setup
	@$(BIN)/python -m tests.lanes

soak: $(VENV)/.dev
	@$(BIN)/python -m tests.simulation --seeds $${SEEDS:-10000} --first $${FIRST_SEED:-0}

faults: $(VENV)/.dev
	@$(BIN)/python -m tests.setup
	TIDELOG_TEST_FAULT_SECONDS=$${FAULT_SECONDS:-30} $(BIN)/pytest -q -s tests/e2e/test_cluster_faults.py

fuzz: $(VENV)/.dev
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-20000} $(BIN)/pytest -q --timeout 0 tests/property

bench: $(VENV)/.dev
	@$(BIN)/python -m benchmarks

fmt: $(VENV)/.dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: $(VENV)/.dev
	$(BIN)/python -m tidelog.docs

requirements: $(VENV)/.dev
	$(PIP) uv
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements/base.txt
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dev pyproject.toml -o requirements/dev.txt
