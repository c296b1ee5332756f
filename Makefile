# Needs Python >= 3.11 with its venv module, and make; everything else is installed into .venv.
#   make demo PYTHON=/path/to/python3    uses that Python to create .venv
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Packages are built in the environment itself (no isolation): setuptools is then locked like everything else.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/runtime.stamp ## the main job on a bundled instance of every family, in under a minute
	@$(BIN)/headroom demo

test: lint types ## lint, types and the test suite
	@$(BIN)/python -m pytest -n 2

lint: $(VENV)/dev.stamp ## ruff
	@$(BIN)/ruff check .

types: $(VENV)/dev.stamp ## mypy --strict on the package as it is installed
	@tools/check_types.sh $(BIN)/python

bench: $(VENV)/dev.stamp ## speed, memory and gap beside the baselines (minutes; not part of the tests)
	@$(BIN)/python -m benchmarks

clean: ## remove .venv, caches and everything else that make wrote
	@rm -rf $(VENV) .typecheck .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	@find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

# Two stamps, so that the demo does not wait for the development tools. An existing, working .venv is kept.
$(VENV)/created.stamp:
	@command -v "$(PYTHON)" >/dev/null || { echo "headroom needs Python 3.11 or newer, and '$(PYTHON)' was not found: install it, or name one with make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "headroom needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1): name a newer one with make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "headroom needs Python's venv module, which '$(PYTHON)' lacks: install it (on Debian and Ubuntu the package python3-venv)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

$(VENV)/runtime.stamp: $(VENV)/created.stamp pyproject.toml constraints.txt
	@echo "Installing headroom into $(VENV) (about a minute the first time)" >&2
	@$(PIP_INSTALL) setuptools
	@$(PIP_INSTALL) --no-build-isolation -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp
	@echo "Installing the development tools into $(VENV)" >&2
	@$(PIP_INSTALL) --no-build-isolation -e '.[dev,cluster]'
	@touch $@
