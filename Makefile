PYTHON ?= python3

# Another Django, such as DJANGO=6.1, has an environment of its own for each Python.
VENV := .venv$(if $(DJANGO),-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-$(DJANGO))
BIN := $(VENV)/bin

# What `make quick` leaves out: pages in a browser, commands, and what other programs check.
SLOW := tests/project tests/contrib tests/api/test_openapi.py tests/api/test_typescript.py \
	tests/support/test_pure_tests.py tests/test_health_page.py tests/test_package.py

# The number of parallel test processes. Most tests wait: for rounds, for a browser, or for data to become stale.
WORKERS ?= 3

.PHONY: run prometheus test lint types tests coverage quick chaos deployment fuzz format start-proxy stop-proxy api-types clean

## Run the project with a demo fleet on http://127.0.0.1:8000
run: $(VENV)/.installed
	@$(BIN)/python -m project.run

## Run Prometheus with the alert rules for `make run` (same PORT) on http://127.0.0.1:9090
prometheus: $(VENV)/.installed
	@$(BIN)/python -m project.prometheus

## Run the linters, the type checker, and the tests
test: lint types tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# The development mode also checks memory, for extensions in C. It slows everything down, and we have none.
DEVMODE := PYTHONDEVMODE=1 PYTHONMALLOC=pymalloc
PYTEST := -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

tests: $(VENV)/.installed-dev node_modules/.installed
	$(DEVMODE) $(BIN)/python $(PYTEST)

## Run the tests, and report the lines that none of them executes: a quarter slower
coverage: $(VENV)/.installed-dev node_modules/.installed
	$(DEVMODE) $(BIN)/coverage run $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

## Run the tests that take little time, except those of SKIP; another Python and Django: make quick PYTHON=python3.13 DJANGO=6.1
quick: $(VENV)/.installed-dev
	$(DEVMODE) $(BIN)/python $(PYTEST) $(addprefix --ignore=,$(SLOW) $(SKIP))

## Kill real processes while clients read, and check what the clients see (about five minutes)
# Each of these tests starts a whole deployment and has time limits. On two cores, three at once are too slow.
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/chaos --quiet --no-header --numprocesses 2 --dist worksteal -m "not alone"
	$(BIN)/python -m pytest tests/chaos --quiet --no-header -m alone

## Follow the documents: install into new projects, deploy, build the documentation site
deployment: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/deployment --quiet --no-header --numprocesses 2 --dist loadfile

## Send random input to the probe, and put random contents into Redis; the same SEED produces the same input
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz --seed $(or $(SEED),1)

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
	rm -rf .venv .venv-*.* node_modules var db.sqlite3* .coverage* .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# With DJANGO, pip also chooses django-prometheus: 2.5.0 refuses Django 6.1, and 2.4.1 refuses 6.0. 2.4.0 refuses none.
# Only project/ needs it: for other projects it is an extra.
PINS := $(if $(DJANGO),s/^django==.*/django==$(DJANGO).*/; s/^django-prometheus==.*/django-prometheus/)
INSTALL = sed '$(PINS)' $< >$(VENV)/$< && $(INSTALLER) --quiet -r $(VENV)/$<

# pip needs more than a minute for the packages of an environment, and uv twelve seconds.
ifdef DJANGO
INSTALLER := .venv/bin/uv pip install --python $(BIN)/python --system-certs --compile-bytecode
$(VENV)/.installed: | .venv/.installed-dev
.venv/.installed-dev:
	$(MAKE) DJANGO= $@
else
INSTALLER := $(BIN)/python -m pip install --disable-pip-version-check
endif

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(INSTALL)
	@touch $@

# The name of the environment says which versions must be in it.
$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(INSTALL)
	@$(BIN)/python -c 'import django, sys; \
		versions = "%d.%d-%d.%d" % (sys.version_info[:2] + django.VERSION[:2]); \
		sys.exit(bool("$(DJANGO)") and "$(VENV)" != f".venv-{versions}" and f"$(VENV) has {versions}")'
	@touch $@

# A wheel provides Node. NODE_USE_SYSTEM_CA makes npm trust the system's authorities, as pip does. Install
# scripts are disabled: the packages work without them.
node_modules/.installed: package.json package-lock.json | $(VENV)/.installed-dev
	NODE_USE_SYSTEM_CA=1 $(BIN)/npm ci --loglevel error --no-audit --no-fund --ignore-scripts
	@touch $@
