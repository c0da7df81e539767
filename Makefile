# Five verbs: install, format, check, test, run. They need GNU make and Python 3.11 or newer, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install run test test-browser format check bench lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with everything that the lock names, tests included

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "runstream needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || \
		{ echo "'$(PYTHON) -m venv' failed: on Debian and Ubuntu, install python3-venv" >&2; exit 1; }
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

run: install ## everything in one command: nats-server, broker, gateway and a demo agent (ARGS="--port 8080")
	@exec $(BIN)/runstream up $(ARGS)

test: install ## all tests, on real nats-servers (ARGS="tests/unit -x")
	$(PY) -m pytest $(ARGS)

test-browser: install ## what a page sees, in Debian's chromium, which must be there (ARGS="-k readme")
	$(PY) -m pytest tests/browser $(ARGS)

format: install ## put the source in its one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --quiet .

# Of a namespace over three folders, `mypy -p runstream` would look at the first, and say that all is well.
check: install ## format, lint and types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(foreach part,schemas broker gateway,-p runstream.$(part)) -p tests

bench: install ## measure (ARGS="--help")
	$(PY) -m tests.bench.run $(ARGS)

# Nothing but the public index decides: this machine's pip configuration would put local files in the lock.
lock: install ## resolve the dependencies anew (ARGS="--upgrade")
	env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE=/dev/null CUSTOM_COMPILE_COMMAND="make lock" \
		$(PY) -m piptools compile --quiet --extra dev --generate-hashes --allow-unsafe --strip-extras \
		--no-emit-index-url --no-emit-find-links --output-file requirements.lock $(ARGS) pyproject.toml

clean: ## remove what the verbs made, .venv and .runstream included
	rm -rf $(VENV) .runstream dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
