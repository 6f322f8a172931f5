# Every target sets up what it needs: `make demo` and `make test` work in a fresh clone.
PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
UV := $(BIN)/uv
UV_VERSION := 0.13.9
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo serve test test-all soak lint format bench lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

install: $(READY)  ## make .venv with every extra, exactly as locked

$(UV):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Segserve needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"

$(READY): pyproject.toml requirements.lock | $(UV)
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps -e .
	$(BIN)/python -m compileall -q src
	@touch $(READY)

demo: install  ## the main jobs, end to end: a real brain, real tissue (five to ten minutes)
	$(BIN)/python -m demo

serve: install  ## start the server on its default addresses
	$(BIN)/segserve serve

test: install  ## the tests, in a few minutes
	$(BIN)/python -m pytest -n 4 --dist loadfile

test-all: install  ## the slow tests too
	$(BIN)/python -m pytest -m ""
	SOAK_MINUTES=5 $(BIN)/python -m benchmarks.soak

soak: install  ## an hour of everything at once (SOAK_MINUTES), to see that nothing grows
	$(BIN)/python -m benchmarks.soak

lint: install  ## ruff, mypy --strict, the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## put the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## timings, as ratios of two things in one run
	$(BIN)/python -m benchmarks

lock: $(UV)  ## pin what pyproject.toml allows, for every system
	$(UV) pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --custom-compile-command 'make lock' -o requirements.lock pyproject.toml

clean:  ## remove the environment
	$(PYTHON) -c 'import shutil; shutil.rmtree("$(VENV)", ignore_errors=True)'
