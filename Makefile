# Needs make, Python 3.11 to 3.13, and a network to the Python registry. Everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiled modules are kept, whatever the shell says: without them every process compiles torch and transformers again.
export PYTHONDONTWRITEBYTECODE :=
READY := $(VENV)/ready

.PHONY: help setup demo test test-all lint types docs format bench clean

help:  ## say what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(READY)  ## make .venv with everything the demo and the tests need

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python {v.major}.{v.minor} found; expected 3.11 to 3.13: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)  ## forget biology in a real model, measure it, write runs/demo/report.html
	$(BIN)/misdirect demo --out runs/demo

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: $(READY)  ## the tests, a file at a time on each core
	$(PYTEST) -m "not long"

test-all: $(READY)  ## the same and the long ones: every family, any input, signals at any moment, disks that fill up
	$(PYTEST)

lint: $(READY)  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## types
	$(BIN)/mypy

docs: $(READY)  ## the documentation as pages: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(READY)  ## rewrite the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## engine, scorer, plan, probes, GCG against what they are measured by: ratios, each in one run
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/harness.py
	$(BIN)/python benchmarks/texts.py
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/probes.py
	$(BIN)/python benchmarks/gcg.py

clean:  ## remove .venv and caches; runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
