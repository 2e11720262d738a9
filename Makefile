# Everything here works on a machine with nothing but Python >= 3.11 and make.
# `make test PYTHON=python3.12 VENV=.venv312` uses another interpreter in another environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
export JAX_PLATFORMS ?= cpu

.PHONY: setup demo test lint bench releases clean

setup: $(STAMP)

$(STAMP): setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("metamorph_jax needs Python >= 3.11, this is " + sys.version.split()[0] + "; try: make setup PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $(STAMP)

demo: $(STAMP)
	PYTHON=$(BIN)/python launch/demo.sh

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP)
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/visualizer.py

# Exports under other releases of transformers, each installed into an environment of its own.
releases: $(STAMP)
	$(BIN)/python -m tests.releases.run

clean:
	rm -rf $(VENV) data runs
