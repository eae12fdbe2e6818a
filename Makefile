PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint types tests chaos fuzz format start-proxy stop-proxy clean

## The whole thing with a demo fleet on http://127.0.0.1:8000
run: $(VENV)/.installed
	@$(BIN)/python -m project.run

## Lint, types, migrations, all tests
test: lint types tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python manage.py makemigrations --check --dry-run

types: $(VENV)/.installed-dev
	$(BIN)/mypy

tests: $(VENV)/.installed-dev
	PYTHONDEVMODE=1 $(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

## Real processes, killed one after the other, while readers look on: about five minutes
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/chaos --quiet --no-header

## Random input for the probe; the same SEED gives the same input
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz --seed $(or $(SEED),1)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## Take a server of the running demo fleet down, and bring it back: NAME=paris
stop-proxy start-proxy: $(VENV)/.installed
	@$(BIN)/python -m project.fleet $(@:-proxy=) $(NAME)

clean:
	rm -rf $(VENV) var db.sqlite3* .coverage* .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
