# Two commands matter: `make study` and `make test`. Both set up .venv when it is missing or out of date.
# Works from a path with spaces: the recipes quote, and the stamp file's name holds no path.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STUDY ?= configs/practice.py

.DEFAULT_GOAL := help
.PHONY: help study test test-slow check format setup docs benchmark clean

help: ## show this help
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | sort

setup: $(STAMP) ## create .venv and install the pinned packages

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "no $(PYTHON) on the PATH; give one with: make PYTHON=/path/to/python3.11"; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "dynamics needs Python >= 3.11; give one with: make PYTHON=python3.11"; exit 2; }
	@echo "setting up $(VENV): a minute or two and 3.9 GB, once"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

study: $(STAMP) ## run the practice study and print the path of its report (STUDY=configs/... for another)
	$(BIN)/dynamics study run "$(STUDY)"

test: $(STAMP) ## run the test suite (at most 10 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow" tests

test-slow: $(STAMP) ## run the long tests, each one named
	$(BIN)/python -m pytest -m slow -v --timeout 3600 --durations=0 tests

check: $(STAMP) ## lint, formatting, types, and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: $(STAMP) ## apply the formatter and the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(STAMP) ## measure the training step at the reference workload
	mkdir -p benchmarks/results
	$(BIN)/python benchmarks/train_step.py --json benchmarks/results/train_step.json --plot benchmarks/results/train_step.png

docs: $(STAMP) ## build the documentation into docs/_build
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx -W -b html docs docs/_build

clean: ## remove the environment, caches and built documentation (results/ stays)
	rm -rf $(VENV) docs/_build .pytest_cache .ruff_cache
