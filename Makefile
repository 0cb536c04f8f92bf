# Every command of this project. `make` alone lists them.
#
# Only Python 3.11+ and make are needed: `setup` makes .venv and installs everything into it. With CI=true it
# installs exactly requirements.lock, else the newest releases that pyproject.toml allows.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# To run needs less than to test: a newcomer waits for the server's own dependencies alone.
RUNS := $(VENV)/.runs
TOOLS := .tools
UV_VERSION := 0.13.9
PIP := $(BIN)/python -m pip --disable-pip-version-check
SIM_SEEDS ?= 10000
KILL_ROUNDS ?= 1000

.DEFAULT_GOAL := help
.PHONY: help setup run demo docs docs-serve test test-live check fix bench sim kill lock clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Make .venv and install what is needed; nothing to do the second time

run: $(RUNS) ## Start the server on http://127.0.0.1:3000 with data in ./data (ARGS="--port 8080")
	@$(BIN)/stripemeter serve $(ARGS)

demo: $(RUNS) ## A month of trouble in half a minute: a duplicate, kill -9, an outage, and every number agrees
	@$(BIN)/stripemeter demo $(ARGS)

docs: $(STAMP) ## The documentation as a site, into site/; it needs no network and no server
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --clean
	@echo "site/index.html"

docs-serve: $(STAMP) ## The same on http://127.0.0.1:8000, built again with each change
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --dev-addr 127.0.0.1:8000

test: $(STAMP) ## Everything that CI runs: all gates, slow tests too
	@$(BIN)/python check.py --full

test-live: $(STAMP) ## What we believe of Stripe, asked of Stripe itself: STRIPE_TEST_SECRET_KEY=sk_test_...
	@$(BIN)/python -m pytest -q -rs tests/live

check: $(STAMP) ## The quick gates: format, lint, layers, types, fast tests
	@$(BIN)/python check.py

fix: $(STAMP) ## The same, and mend what the tools can mend
	@$(BIN)/python check.py --fix

bench: $(STAMP) ## All benchmarks, one JSON result each
	@set -e; for file in bench/*.py; do \
	  if [ "$$file" != bench/compare.py ] && grep -q '^if __name__ == "__main__"' "$$file"; then \
	    echo "== $$file" >&2; $(BIN)/python "$$file"; \
	  fi; \
	done

sim: $(STAMP) ## The simulated worlds, SIM_SEEDS=10000 seeds
	@SIM_SEEDS=$(SIM_SEEDS) RECON_SEEDS=1000 $(BIN)/python -m pytest -q -n auto --dist=worksteal \
	  tests/sim tests/pricing -m "soak or not soak"

kill: $(STAMP) ## kill -9 under load, KILL_ROUNDS=1000 times; nothing lost, nothing double
	@KILL_ROUNDS=$(KILL_ROUNDS) $(BIN)/python -m pytest -q tests/crash -m "soak or not soak"

lock: $(TOOLS)/bin/uv ## Write requirements.lock anew from pyproject.toml
	@$(TOOLS)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev \
	  --no-emit-index-url --no-emit-find-links --no-annotate \
	  --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

clean: ## Remove what can be made anew; ./data stays
	rm -rf $(VENV) $(TOOLS) dist site htmlcov .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	rm -rf sdk/node/dist sdk/node/node_modules examples/node_app/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml requirements.lock | $(BIN)/python
	@echo "installing into $(VENV)" >&2
	@if [ "$(CI)" = true ]; then \
	  $(PIP) install --quiet --requirement requirements.lock && $(PIP) install --quiet --no-deps --editable .; \
	else \
	  $(PIP) install --quiet --editable '.[dev]'; \
	fi
	@touch $@ $(RUNS)

$(RUNS): pyproject.toml requirements.lock | $(BIN)/python
	@echo "installing into $(VENV)" >&2
	@if [ "$(CI)" = true ]; then \
	  $(PIP) install --quiet --constraint requirements.lock --editable .; \
	else \
	  $(PIP) install --quiet --editable .; \
	fi
	@touch $@

# Some systems split venv off their Python: one that can't make an environment is not a candidate.
$(BIN)/python:
	@for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
	  if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	  then exec $$candidate -m venv --clear $(VENV); fi; \
	done; \
	echo "make: no Python 3.11 or newer with its venv module found. Install one (Debian, Ubuntu:" >&2; \
	echo "apt-get install python3 python3-venv), or name it: make setup PYTHON=/path/to/python3" >&2; \
	exit 1

$(TOOLS)/bin/uv: | $(BIN)/python
	@$(BIN)/python -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION)
