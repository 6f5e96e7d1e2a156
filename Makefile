# `make demo` and `make test` need nothing before them but Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := agent ingest metadata storage runtime autoscaler tidelog tests benchmarks

.PHONY: help env demo test check fmt docs bench fuzz requirements

help:
	@echo "make demo    ship a real log through Tidelog and watch it come out (DEMO_SECONDS=60)"
	@echo "make test    every test; installs what it may (Debian packages only in CI), says what it skipped"
	@echo "make check   the gate: format, lint, types, import contracts, generated docs, fast tests"
	@echo "make bench   one table of speed ratios against peers and raw limits"
	@echo "make fuzz    the fuzz tests, longer (FUZZ_EXAMPLES=20000)"
	@echo "make env     .venv with .venv/bin/tidelog"
	@echo "make docs    regenerate docs/configuration.md, docs/metrics.md and docs/apis.md from the code"

env: $(VENV)/.ready

$(VENV)/.ready: requirements/dev.txt pyproject.toml
	@test -x $(BIN)/python || { echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing the pinned, hashed requirements (about a minute the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: env
	@$(BIN)/tidelog demo --seconds $${DEMO_SECONDS:-60}

check: env
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tidelog.docs --check
	$(BIN)/pytest -q tests/unit tests/contract tests/property

test: env
	@$(BIN)/python -m tests.setup
	$(BIN)/pytest -q tests

fuzz: env
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-20000} $(BIN)/pytest -q --timeout 0 tests/property

bench: env
	@$(BIN)/python -m benchmarks

fmt: env
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: env
	$(BIN)/python -m tidelog.docs

requirements: env
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements/base.txt
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dev pyproject.toml -o requirements/dev.txt
