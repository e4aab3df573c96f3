# Two commands on a fresh machine: `make train`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup train test test-all check format smoke bench clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## a virtual environment with everything in it

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

train: $(READY)  ## train a CNN on handwritten digits
	$(BIN)/refresher train model=cnn

test: $(READY)  ## the fast tests
	$(PYTEST)

test-all: $(READY)  ## every test, the slow ones too
	$(PYTEST) -m 'slow or not slow'

check: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)  ## put every file into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

smoke: $(READY)  ## every model, a few steps
	for model in $$($(BIN)/refresher list models --names); do $(BIN)/refresher train model=$$model trainer=smoke || exit 1; done

bench: $(READY)  ## measure against hand-written loops and peers
	$(BIN)/python -m benchmarks

clean:  ## caches and builds; never outputs/
	rm -rf build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
