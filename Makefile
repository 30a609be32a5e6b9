# Only Python and make are assumed: the targets run in an environment that is made here, once.
PYTHON ?= python3
PY := python3.12
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-py lint types format bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY) ## train on handwritten digits, estimate log p(x), draw samples
	rm -rf runs/digits
	$(BIN)/pvae train --data digits --binarize dynamic --epochs 100 --seed 0 --out runs/digits
	$(BIN)/pvae logp runs/digits --samples 1000
	$(BIN)/pvae sample runs/digits

test: $(READY) ## run the tests, without the slow ones
	$(BIN)/pytest -n 2 --dist worksteal

test-all: $(READY) ## run all tests
	$(BIN)/pytest -n 2 --dist worksteal -m ""

test-py: ## run the tests on another Python: make test-py PY=python3.12
	$(MAKE) test PYTHON=$(PY) VENV=.venv-$(notdir $(PY))

lint: $(READY) ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY) ## check types
	$(BIN)/mypy

format: $(READY) ## repair what lint can repair
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY) ## run the benchmarks
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python benchmarks/run.py

clean: ## remove build products and caches; runs and environments stay
	rm -rf build dist .coverage .mypy_cache .pytest_cache .ruff_cache
	find pvae models guides tests -name __pycache__ -exec rm -rf {} +
