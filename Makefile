# make run     install Greenroom into .venv and ask a model something
# make test    set up and run the tests
# make help    everything else

PYTHON ?= python3
MODEL ?= smollm2
PROMPT ?= Write one sentence about the sea.
# Small models sometimes do not know when to stop.
MAX_TOKENS ?= 512
# Most tests wait for other processes most of the time, so a few more than there are cores go side by side.
TEST_PROCESSES ?= 3

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# As typed: a dollar sign in a prompt is a dollar sign.
run: export MODEL_NAME := $(value MODEL)
run: export PROMPT_TEXT := $(value PROMPT)

.DEFAULT_GOAL := help
.PHONY: help run test test-slow check format golden bench clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1: \2/p' Makefile

run: $(VENV)/.installed ## ask a model something: make run MODEL=… PROMPT=…  (PROMPT= begins a chat)
	@if [ -n "$$PROMPT_TEXT" ]; then \
	  $(BIN)/greenroom run --max-tokens $(MAX_TOKENS) "$$MODEL_NAME" -- "$$PROMPT_TEXT" </dev/null; \
	else \
	  $(BIN)/greenroom run "$$MODEL_NAME"; \
	fi

test: $(VENV)/.installed-dev ## set up and run the tests
	$(BIN)/python -m pytest -m "not slow" --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.installed-dev ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed-dev ## lint, format, strict types for Linux and macOS
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin

format: $(VENV)/.installed-dev ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

golden: $(VENV)/.installed-dev ## take up changes of what is stored: make golden [CHANGED="…"] [VERSION=…]
	@$(BIN)/python tests/shared/golden.py --changed "$(CHANGED)" --version "$(VERSION)"

bench: $(VENV)/.installed-dev ## measure everything, and say which budgets are held
	@$(BIN)/python -m bench

clean: ## remove what was built; models and backends in the data directory stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
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

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what tests and checks need into $(VENV)"
	@$(PIP) install --editable '.[dev]'
	@touch $@
