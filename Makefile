# make setup   .venv with everything, from the locked requirements
# make demo    deliver the bundled carbon plan on the simulated carbon room
# make test    all tests            make check   format, lint, types, import contracts
# make lock    solve the requirements again
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.ready
BIN := $(VENV)/bin

.PHONY: setup demo test check lock
.DEFAULT_GOAL := setup

setup: $(STAMP)

# hatchling is locked with the rest, so that the project itself installs without asking anyone for anything.
$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(f"Spotwise needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; try make setup PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/spotwise deliver sites/plans/demo_carbon_2field.dcm --site carbon-fixed --out demo-$$(date +%Y%m%d-%H%M%S)

# First what runs in virtual time, on all cores; then what needs the computer for itself.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m "not slow and not real_clock"
	$(BIN)/python -m pytest -m "real_clock and not slow"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Hashes of all wheels of a release are written, so one lock serves x86_64 and aarch64, Python 3.11 to 3.13.
# Solve it with the oldest Python that is supported: what that one can install, the newer ones can.
LOCK := build/lock
COMPILE := $(LOCK)/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header \
	--no-annotate --no-emit-index-url --no-emit-trusted-host --no-emit-find-links

$(LOCK)/bin/pip-compile:
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/python -m pip install --quiet --disable-pip-version-check 'pip-tools>=7.6,<8'

lock: $(LOCK)/bin/pip-compile
	$(COMPILE) --output-file requirements/base.txt pyproject.toml
	$(COMPILE) --extra broker --extra campaign --extra dev --extra bench --extra export --constraint requirements/base.txt --output-file requirements/dev.txt pyproject.toml
	$(COMPILE) --extra export --constraint requirements/dev.txt --output-file requirements/export.txt pyproject.toml
