PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The first Python that works: a version manager may provide a command without its interpreter.
PYTHON6 ?= $(shell for python in python3.14 python3.13 python3.12; do \
	$$python -c "import ensurepip, venv" 2>/dev/null && echo $$python && break; done)
VENV6 := .venv-django6
# The packages of requirements-dev.txt that TESTS6 need.
TOOLS6 := django-csp|gunicorn|playwright|pytest|pytest-django|pytest-xdist|trustme
TESTS6 := tests/django6 tests/metrics tests/rounds/test_broker.py tests/rounds/test_dispatch.py \
	$(patsubst %,tests/api/test_%.py,caching filters inventory listing query representation views) \
	$(patsubst %,tests/test_%.py,access admin checks forks health middleware middleware_policies models receivers \
		schedules templatetags validators)

# The number of parallel test processes. Most tests wait: for rounds, for a browser, or for data to become stale.
WORKERS ?= 3

.PHONY: run prometheus test lint types tests django6 chaos fuzz format start-proxy stop-proxy api-types clean

## Run the project with a demo fleet on http://127.0.0.1:8000
run: $(VENV)/.installed
	@$(BIN)/python -m project.run

## Run Prometheus with the alert rules for `make run` (same PORT) on http://127.0.0.1:9090
prometheus: $(VENV)/.installed
	@$(BIN)/python -m project.prometheus

## Run the linters, the type checker, the check for missing migrations, and the tests
test: lint types tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# The development mode also checks memory, for extensions in C. It slows everything down, and we have none.
tests: $(VENV)/.installed-dev node_modules/.installed
	PYTHONDEVMODE=1 PYTHONMALLOC=pymalloc $(BIN)/coverage run -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

## Run the tests that depend on Django with Django 6 (Python 3.12 or newer: PYTHON6=python3.13)
django6: $(VENV6)/.installed
	$(VENV6)/bin/python manage.py makemigrations --check --dry-run
	PYTHONDEVMODE=1 $(VENV6)/bin/python -m pytest --quiet --no-header --numprocesses $(WORKERS) --dist loadfile \
		$(TESTS6)

## Kill real processes while clients read, and check what the clients see (about four minutes)
# Each of these tests starts a whole deployment and has time limits. On two cores, three at once are too slow.
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/chaos --quiet --no-header --numprocesses 2 --dist worksteal -m "not alone"
	$(BIN)/python -m pytest tests/chaos --quiet --no-header -m alone

## Send random input to the probe; the same SEED produces the same input
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.probing.fuzz --seed $(or $(SEED),1)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## Generate the TypeScript types of the JSON API from openapi.json
api-types: node_modules/.installed
	$(BIN)/node node_modules/.bin/openapi-typescript proxyhealth/api/openapi.json --output proxyhealth/api/openapi.d.ts --root-types --root-types-no-schema-prefix

## Stop or start one server of the running demo fleet: NAME=paris
stop-proxy start-proxy: $(VENV)/.installed
	@$(BIN)/python -m project.fleet $(@:-proxy=) $(NAME)

clean:
	rm -rf $(VENV) $(VENV6) node_modules var db.sqlite3* .coverage* .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV6)/bin/python:
	@$(or $(PYTHON6),false) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || \
		{ echo "Django 6 needs Python 3.12 or newer: make django6 PYTHON6=python3.13" >&2; exit 1; }
	$(PYTHON6) -m venv $(VENV6)

$(VENV6)/.installed: requirements.txt requirements-dev.txt | $(VENV6)/bin/python
	grep -v '^django==' requirements.txt > $(VENV6)/requirements.txt
	grep -E '^($(TOOLS6))==' requirements-dev.txt >> $(VENV6)/requirements.txt
	$(VENV6)/bin/python -m pip install --quiet --disable-pip-version-check -r $(VENV6)/requirements.txt 'django>=6,<7'
	@touch $@

# A wheel provides Node. NODE_USE_SYSTEM_CA makes npm trust the system's authorities, as pip does. Install
# scripts are disabled: the packages work without them.
node_modules/.installed: package.json package-lock.json | $(VENV)/.installed-dev
	NODE_USE_SYSTEM_CA=1 $(BIN)/npm ci --loglevel error --no-audit --no-fund --ignore-scripts
	@touch $@
