PYTHON ?= python3

# noxfile.py sets another environment for each pair of Python and Django.
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The tests of pages in a browser, of the demo, and of what other programs check.
PAGES := $(wildcard tests/alive tests/api/test_typescript.py tests/contrib tests/notifications/test_mail_rendering.py \
	tests/project tests/status_page/test_status_page.py tests/support/test_pure_tests.py tests/test_frontend.py \
	tests/test_health_page*.py tests/test_package.py tests/test_prober_page.py tests/test_proxy_list_page.py)

# The number of parallel test processes. Most tests wait: for rounds, for a browser, or for data to become stale.
WORKERS ?= 4

.DEFAULT_GOAL := help
.PHONY: help run prometheus test lint types quick pages coverage chaos deployment screenshots fuzz format docs docs-links \
	dist start-proxy stop-proxy api-types messages clean

## List these commands
help:
	@awk '/^## / { text = substr($$0, 4) } /^[a-z][a-z -]*:/ && text { \
		names = $$0; sub(/:.*/, "", names); printf "make %-24s  %s\n", names, text; text = "" }' $(firstword $(MAKEFILE_LIST))

## Run the project with a demo fleet on http://127.0.0.1:8000
run: $(VENV)/.installed
	@$(BIN)/python -m project.run

## Run Prometheus with the alert rules for `make run` (same PORT) on http://127.0.0.1:9090
prometheus: $(VENV)/.installed
	@$(BIN)/python -m project.prometheus

## Run the linters, the type checker, and the tests
test: lint types quick

## Run the linters
lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

## Run the type checker
types: $(VENV)/.installed-dev
	$(BIN)/mypy

# The development mode also checks memory, for extensions in C. It slows everything down, and we have none.
DEVMODE := PYTHONDEVMODE=1 PYTHONMALLOC=pymalloc
PYTEST := -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

## Run the tests, or those of TESTS, except those of `make pages`, `make chaos`, and `make deployment`
quick: $(VENV)/.installed-dev
	$(DEVMODE) $(BIN)/python $(PYTEST) $(addprefix --ignore=,$(PAGES)) $(TESTS)

## Run the tests of pages in a browser, of the demo, and of what other programs check
pages: $(VENV)/.installed-dev node_modules/.installed
	$(DEVMODE) $(BIN)/python $(PYTEST) $(PAGES)

## Run the tests, also those of pages, and report the lines that none of them executes
coverage: $(VENV)/.installed-dev node_modules/.installed
	$(DEVMODE) $(BIN)/coverage run $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Each of these tests starts a whole deployment and has time limits. On two cores, three at once are too slow,
# but for those that are patient.
## Kill real processes while clients read, and check what the clients see (about ten minutes)
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/chaos --quiet --no-header --numprocesses 2 --dist worksteal -m "not (alone or patient)"
	$(BIN)/python -m pytest tests/chaos --quiet --no-header --numprocesses 4 --dist worksteal -m patient
	$(BIN)/python -m pytest tests/chaos --quiet --no-header -m alone

## Follow the documents: install, deploy, build the site; test the API and the alerts with other programs
deployment: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/deployment --quiet --no-header --numprocesses 2 --dist loadfile

## Take pictures of the pages of a new demo, in var/screenshots
screenshots: $(VENV)/.installed-dev
	$(BIN)/python -m tests.support.screenshots

## Send random input to the probe, and put random contents into Redis; the same SEED produces the same input
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz --seed $(or $(SEED),1)

## Format the code
format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The source is the whole repository, so that links between its documents work. Warnings are errors.
SPHINX := $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs --doctree-dir var/docs/doctrees

## Build the documentation site in var/docs/html, and check its links
docs: $(VENV)/.installed-dev
	$(SPHINX) --fresh-env . var/docs/html
	@echo "The site is in var/docs/html. Open var/docs/html/index.html"

## Request every address of another site that the documentation links to; needs a network
docs-links: $(VENV)/.installed-dev
	$(SPHINX) --builder linkcheck . var/docs/links

## Build the wheel and the sdist in dist/, and check their metadata and README
dist: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m hatchling build
	$(BIN)/python -m twine check --strict dist/*

## Generate the TypeScript types of the JSON API from openapi.json
api-types: node_modules/.installed
	$(BIN)/node node_modules/.bin/openapi-typescript proxyhealth/api/openapi.json --output proxyhealth/api/openapi.d.ts --root-types --root-types-no-schema-prefix

## Bring the German catalogue up to date, and report what is not translated
messages: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.support.catalogue

.PHONY: stop-redis stop-worker stop-beat stop-mail stop-web start-redis start-worker start-beat start-mail start-web
## Stop a part of the running demo; a proxy: make stop-proxy NAME=paris
stop-proxy stop-redis stop-worker stop-beat stop-mail stop-web: $(VENV)/.installed
	@$(BIN)/python -m project.control $@
## Start it again
start-proxy start-redis start-worker start-beat start-mail start-web: $(VENV)/.installed
	@$(BIN)/python -m project.control $@

# An unknown part: the command lists the valid ones.
stop-%: $(VENV)/.installed
	@$(BIN)/python -m project.control $@
start-%: $(VENV)/.installed
	@$(BIN)/python -m project.control $@

## Delete everything that these commands have created
clean:
	rm -rf .venv .nox node_modules var db.sqlite3* .coverage* .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # Debian without python3-venv leaves half of it

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(INSTALL) -r $<
	@touch $@

# pip needs minutes for these packages, and uv seconds. But uv does not read the configuration of pip.
UV_INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --system-certs --compile-bytecode
$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(INSTALL) $$(grep '^uv==' $<)
	$(UV_INSTALL) -r $< || $(INSTALL) -r $<
	@touch $@

# A wheel provides Node. NODE_USE_SYSTEM_CA makes npm trust the system's authorities, as pip does. Install
# scripts are disabled: the packages work without them.
node_modules/.installed: package.json package-lock.json | $(VENV)/.installed-dev
	NODE_USE_SYSTEM_CA=1 $(BIN)/npm ci --loglevel error --no-audit --no-fund --ignore-scripts
	@touch $@
