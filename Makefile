# Every target does all of its own set-up; it needs Python 3.11 to 3.13, git and make, and is quick when nothing changed.
# ARGS is handed on: make test ARGS="-k reorg", make demo ARGS="--json".

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

# Pinned, because another version may write the lock differently.
UV := uv==0.13.8
UV_COMPILE = .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help setup venv demo test long netns page lint fmt bench sim fuzz lock clean distclean

help: ## Show the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## Make the virtual environment and see to bitcoind.
	@$(PYTHON) scripts/setup.py

venv:
	@$(PYTHON) scripts/setup.py --no-bitcoind

demo: setup ## Run a whole trade between real nodes on regtest.
	@$(BIN)/p2pnode demo $(ARGS)

test: setup ## Run all tests but the long ones.
	@$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

long: setup ## Run the tests that take long: further cases of what others show in short.
	@$(BIN)/pytest -m long $(ARGS)

netns: setup ## Trade behind NATs, over bad lines and dying relays (root, Linux).
	@$(BIN)/pytest tests/netns -m "netns or not netns" $(ARGS)

page: ## Trade in real browsers, without a hand on the mouse (Chromium; on Debian it is installed).
	@$(PYTHON) scripts/setup.py --bench
	@command -v chromium >/dev/null || { test "$$(id -u)" != 0 || apt-get install -y -q chromium >/dev/null; }
	@$(BIN)/pytest tests/page $(ARGS)

lint: venv ## Check style, types and layers.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "lint: run 'make fmt'" >&2; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --no-logo

fmt: venv ## Format, and mend what can be mended by itself.
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

bench: ## Measure everything, beside what must be reached (ARGS=--quick: the short form).
	@$(PYTHON) scripts/setup.py --bench
	@$(BIN)/python -m tests.bench $(ARGS)

sim: ## Simulate a DHT of 10,000 nodes and draw the plots (ARGS=--quick: 1,000).
	@$(PYTHON) scripts/setup.py --no-bitcoind --bench
	@$(BIN)/python -m dht.sim $(ARGS)

fuzz: ## Fuzz every decoder, a minute each (ARGS="--seconds 300 record").
	@$(PYTHON) scripts/setup.py --no-bitcoind --bench
	@$(BIN)/python -m tests.fuzz $(ARGS)

lock: ## Refresh the hash-locked requirements to the newest versions that pyproject.toml allows.
	@test -x .venv-lock/bin/uv || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet "$(UV)"; }
	@$(UV_COMPILE) pyproject.toml --upgrade --extra dev --output-file requirements-dev.txt
	@$(UV_COMPILE) pyproject.toml --constraint requirements-dev.txt --output-file requirements.txt
	@$(UV_COMPILE) requirements-electrum.in --upgrade --constraint requirements-dev.txt --output-file requirements-electrum.txt
	@$(UV_COMPILE) pyproject.toml --upgrade --extra bench --constraint requirements-dev.txt --output-file requirements-bench.txt

clean: ## Remove caches, reports and build products.
	@rm -rf build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage htmlcov
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## As clean, and the virtual environments.
	@rm -rf .venv .venv-lock .venv.lock
