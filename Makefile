# Everything here needs only Python 3.11 or newer (with venv and pip), make and a package index: the first target that
# needs an environment makes .venv from requirements.lock, whose hashes are checked.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-peers
WORKERS ?= 2
SOAK_CYCLES ?= 1000
ROWS ?= 500000

# The first interpreter that really runs, is new enough and can make environments.
define find_python
for candidate in $${PYTHON:-python3.11 python3 python3.12 python3.13 python3.14}; do
  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$$candidate; break;
  fi;
done;
if [ -z "$${python:-}" ]; then
  echo "Python 3.11 or newer with venv and pip is needed: apt-get install python3.11-venv, or set PYTHON=..." >&2; exit 2;
fi
endef

# uv doesn't read pip's configuration: hand on the index that pip is told to use, and keep its cache here when the home
# folder can't be written.
define uv_settings
if [ -z "$${UV_DEFAULT_INDEX:-}" ]; then
  index=$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)};
  if [ -n "$$index" ]; then export UV_DEFAULT_INDEX=$$index; fi;
fi;
if [ ! -w "$${HOME:-/nonexistent}" ]; then export UV_CACHE_DIR=$${UV_CACHE_DIR:-$(CURDIR)/$(VENV)/cache}; fi;
export UV_NO_PROGRESS=1
endef

one_line = $(subst $(newline), ,$(1))
define newline


endef

# Compiled modules are kept, whatever the shell says: the tests start programs all the time, and each would compile a
# thousand modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env demo test lint format types unit soak bench lock clean peers servers fetched

help: ## say what can be made
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

env: $(READY) ## make the environment in .venv

$(READY): requirements.lock requirements-uv.lock pyproject.toml
	@$(call one_line,$(find_python)); \
	if ! $(BIN)/python -c 'import pip' 2>/dev/null; then "$$python" -m venv --clear $(VENV); fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock; \
	$(call one_line,$(uv_settings)); \
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	touch $@; echo "environment ready: $(BIN)/syncline"

demo: $(READY) ## sync a real PostgreSQL into DuckDB, live, and compare both at the end
	@$(BIN)/syncline demo

test: $(READY) fetched ## lint, strict types and the whole test suite
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -n $(WORKERS) --durations 25

lint: $(READY) ## ruff's rules and format, without changing anything
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: $(READY) ## let ruff mend and format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: $(READY) ## mypy, strict
	@$(BIN)/mypy

unit: $(READY) fetched ## the tests that take less than ten seconds each
	@$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not soak"

servers: $(READY) ## optional: fetch the servers that only the tests want
	@echo "optional: only the tests want these, and 'make test' fetches them by itself"; \
	$(BIN)/python tests/fetch.py

# Before the tests, whose clock runs. What is missing is skipped by them, and fails them where CI is set.
fetched: $(READY)
	@$(BIN)/python tests/fetch.py || true

soak: $(READY) ## kill and compare, SOAK_CYCLES times (1000)
	@SYNCLINE_SOAK_CYCLES=$(SOAK_CYCLES) $(BIN)/python -m pytest -m soak --timeout 0

bench: $(READY) ## measure against pg_recvlogical, ROWS rows (500000)
	@$(BIN)/syncline bench wal-duckdb --rows $(ROWS)

peers: $(READY) ## optional: the programs that bench compares with, in .venv-peers and -diff
	@echo "optional: only 'syncline bench' looks for these"; \
	$(call one_line,$(find_python)); \
	"$$python" -m venv --clear $(PEERS); \
	$(call one_line,$(uv_settings)); \
	$(BIN)/uv pip install --python $(PEERS)/bin/python "ingestr==1.0.78" "duckdb>=1.5,<1.6" \
	  "duckdb-extension-postgres-scanner>=1.5,<1.6"; \
	"$$python" -m venv --clear $(PEERS)-diff; \
	$(BIN)/uv pip install --python $(PEERS)-diff/bin/python "reladiff[postgresql,duckdb]==0.6.0" "duckdb>=2,<3"

lock: $(READY) ## resolve the newest versions into requirements.lock
	@$(call one_line,$(uv_settings)); \
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-emit-index-url \
	  --extra dev --output-file requirements.lock pyproject.toml

clean: ## remove what was made: environments, caches, builds
	rm -rf $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
