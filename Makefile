# The interpreter that .venv is made with; 3.11 or newer.
PYTHON ?= python3
OUTPUT ?= demo_output
TESTS ?= tests
# A file is a unit, as its tests share what they have made; conftest.py puts the longest first.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PACKAGING := setup.py pyproject.toml langsamp_jax/__init__.py

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow test-all lint clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile
	@echo 'Variables: PYTHON=$(PYTHON) OUTPUT=$(OUTPUT) TESTS=$(TESTS) PYTEST_ARGS="$(PYTEST_ARGS)"'

demo: $(VENV)/core.stamp ## Run the demonstration; its results go to OUTPUT
	$(BIN)/langsamp demo --output "$(OUTPUT)"

test: $(VENV)/dev.stamp ## Run the fast tests in TESTS
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow" $(TESTS)

test-slow: $(VENV)/dev.stamp ## Run the slow tests in TESTS
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m slow $(TESTS)

test-all: $(VENV)/dev.stamp ## Run all tests in TESTS
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(TESTS)

lint: $(VENV)/dev.stamp ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## Remove .venv, caches, builds and demo_output
	rm -rf $(VENV) build dist *.egg-info demo_output .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so an interrupted installation is done again. The locks hold everything
# that is needed, hence --no-deps: pip adds nothing of its own choice.
define install
	@echo "Installing $(1) into $(VENV)"
	@$(PIP) install -q --no-deps -r $(1)
	@$(PIP) install -q --no-deps --no-build-isolation -e .
endef

$(VENV)/core.stamp: requirements/core.txt $(PACKAGING) | $(VENV)/created.stamp
	$(call install,requirements/core.txt)
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(PACKAGING) | $(VENV)/created.stamp
	$(call install,requirements/dev.txt)
	@$(BIN)/python -c 'import torch' || { \
	  echo 'torch cannot be imported. If it is a build for CUDA (it then needs libraries that the' >&2; \
	  echo 'lock does not hold), name an index of CPU builds in PIP_EXTRA_INDEX_URL and repeat' >&2; \
	  echo 'after "make clean".' >&2; exit 1; }
	@touch $@

$(VENV)/created.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Python 3.11 or newer is needed; name one with "make PYTHON=python3.11 ...".' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo '$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv' >&2; \
	  exit 1; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
