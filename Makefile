# Everything that a clone needs: make demo | test | reproducible | check | docs | bench. The first call builds the environment.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= auto
BIN := $(VENV)/bin

.PHONY: demo test reproducible check format docs bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    scan the shipped language model and write a report"
	@echo "make test    run the tests"
	@echo "make reproducible  run every reproduction once more and compare with the numbers of make test"
	@echo "make check   format, lint, types, import contract"
	@echo "make docs    build the documentation into site/"
	@echo "make bench   run the benchmarks and write docs/benchmarks.md"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Actinium needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras: newer than what declares the dependencies means that nothing has to be installed.
$(VENV)/.installed-base: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	@touch $@

demo: $(VENV)/.installed-base
	$(BIN)/actinium scan world:lm

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m 'not again'

reproducible: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m again

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/build.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "documentation: site/index.html"

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) site build dist
