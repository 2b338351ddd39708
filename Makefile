# `make help` lists the targets. Everything lives in .venv; a second run reuses what is there.
PYTHON ?= python3
VENV   ?= .venv
DEVICE ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slurm docs lint format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

quickstart: $(VENV)/.installed ## make the environment and train, mine and evaluate a small embedder on this machine's Python
	@echo "==> bgetrain recipe=quickstart $(ARGS)"
	@$(BIN)/bgetrain recipe=quickstart $(ARGS)

test: $(VENV)/.tested ## make the environment and run the tests (ARGS="-k name" for some)
	@echo "==> pytest $(ARGS)"
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slurm: $(VENV)/.tested ## run the tests on a real SLURM cluster on this machine; as root on Debian it installs SLURM
	@tests/slurm/cluster.sh install
	@echo "==> pytest tests/slurm $(ARGS)"
	@$(BIN)/python -m pytest tests/slurm -m slurm -p no:xdist -rs $(ARGS)

docs: $(VENV)/.documented ## make the pages of docs/, with a reference of all keys, in build/site/index.html
	@echo "==> mkdocs build"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build $(ARGS)
	@echo "build/site/index.html"

lint: $(VENV)/.linted ## style, types
	@echo "==> ruff, mypy"
	@$(BIN)/ruff check bgetrain tests
	@$(BIN)/ruff format --check bgetrain tests
	@$(BIN)/mypy

format: $(VENV)/.linted ## rewrite the source in house style
	@$(BIN)/ruff check --fix bgetrain tests
	@$(BIN)/ruff format bgetrain tests

clean: ## remove the environment, caches and outputs
	rm -rf $(VENV) outputs build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "bgetrain needs Python 3.11 or newer; say which with: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	@echo "==> making an environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	@echo "==> installing bgetrain[$(DEVICE)] and what it needs (some minutes the first time)"
	@$(PIP) install --quiet -c constraints.txt -e ".[$(DEVICE)]"
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	@echo "==> installing what the tests need"
	@$(PIP) install --quiet -c constraints.txt -e ".[$(DEVICE),test]"
	@touch $@

$(VENV)/.linted: $(VENV)/.installed
	@echo "==> installing ruff and mypy"
	@$(PIP) install --quiet -c constraints.txt -e ".[$(DEVICE),lint]"
	@touch $@

$(VENV)/.documented: $(VENV)/.installed
	@echo "==> installing mkdocs"
	@$(PIP) install --quiet -c constraints.txt -e ".[$(DEVICE),docs]"
	@touch $@
