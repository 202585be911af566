# What people do with this tree; `make run` is the tutorial's first page.
#   make test PYTHON=python3.13   takes another interpreter, in an environment of its own.
#   make test ARGS="-k reload"    passes on what follows; so does make bench.

PYTHON ?= python3
PORT ?= 8000

ifeq ($(PYTHON),python3)
VENV := .venv
else
VENV := .venv-$(notdir $(PYTHON))
endif
BENCH := .venv-bench
BIN := $(VENV)/bin

.PHONY: run test check bench clean

run: $(VENV)/.run
	$(BIN)/asgictl hello:app --app-dir docs/tutorial --workers 4 --port $(PORT)

test: $(VENV)/.test
	$(BIN)/pytest $(ARGS)

check: $(VENV)/.check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: $(BENCH)/.bench
	$(BENCH)/bin/python -m tests.benchmarks $(or $(ARGS),--write docs/explanation)

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build

# Each stamp says that an environment holds what pyproject.toml asks for. pip is upgraded
# first: dependency groups need 25.1 or newer.
%/.pip:
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --upgrade pip
	@touch $@

%/.run: pyproject.toml | %/.pip
	$*/bin/python -m pip install --quiet --editable .
	@touch $@

%/.test: pyproject.toml | %/.run
	$*/bin/python -m pip install --quiet --group test
	@touch $@

%/.check: pyproject.toml | %/.run
	$*/bin/python -m pip install --quiet --group test --group check
	@touch $@

%/.bench: pyproject.toml | %/.run
	$*/bin/python -m pip install --quiet --group bench
	@touch $@

.PRECIOUS: %/.pip %/.run %/.test %/.check %/.bench
