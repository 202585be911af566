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
DOCS := .venv-docs
BIN := $(VENV)/bin

.PHONY: run test nightly check bench docs changes clean

run: $(VENV)/.run
	$(BIN)/asgictl hello:app --app-dir docs/tutorial --workers 4 --port $(PORT)

test: $(VENV)/.test
	$(BIN)/pytest $(ARGS)

# What must hold of the supervisor's core whatever happens: 10,000 examples of every property and
# long searches, for a night. ARGS="tests/worker" tries the worker's properties as hard.
nightly: $(VENV)/.test
	HYPOTHESIS_PROFILE=nightly $(BIN)/pytest --timeout 0 $(or $(ARGS),tests/supervisor/core)

check: $(VENV)/.check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: $(BENCH)/.bench
	$(BENCH)/bin/python -m tests.benchmarks $(or $(ARGS),--write docs/explanation)

docs: $(DOCS)/.docs
	$(DOCS)/bin/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet -b html docs docs/_build/html $(ARGS)
	@echo "open docs/_build/html/index.html"

# Moves the fragments of docs/changes into the page of changes, as a release of this version.
changes: $(DOCS)/.docs
	$(DOCS)/bin/towncrier build --yes --version $(VERSION)

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build docs/_build

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

# Building the pages runs nothing of asgictl: they need no editable install.
%/.docs: pyproject.toml | %/.pip
	$*/bin/python -m pip install --quiet --group docs
	@touch $@

.PRECIOUS: %/.pip %/.run %/.test %/.check %/.bench %/.docs
