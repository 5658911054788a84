# `make demo` and `make test` do all the set-up they need; nothing has to be installed before
# but Python >= 3.11 (with venv), a C++ compiler and make.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	&& echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help setup demo test test-slow test-aarch64 wheels lint clean

help:
	@echo "make demo       the whole loop on this machine in a few minutes; see demo-output/report.html"
	@echo "make test       lint, types and the default tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make wheels     dist/: the wheels for devices, x86-64 and (cross-compiled) aarch64"
	@echo "make test-aarch64  the aarch64 wheel under emulation; says what it needs where that is missing"
	@echo "make lint       ruff and mypy --strict"
	@echo "make setup      only the virtual environment and the native library"
	@echo "make clean      remove what make made, demo-output/ included"

# A CPU build of torch where the platform offers one: the default build on Linux brings gigabytes
# of CUDA libraries. TORCH_INDEX= picks another index, e.g. one for your CUDA version.
$(VENV)/.ready: pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "the venv module is needed (Debian: apt install python3-venv)"; exit 1; }
	$(BIN)/pip install -q --upgrade pip "setuptools>=77" wheel
	$(BIN)/pip install -q "torch==$(TORCH)+cpu" --extra-index-url $(CPU_INDEX) --retries 1 --timeout 15 \
		|| $(BIN)/pip install -q "torch==$(TORCH)"
	PYTHONWARNINGS=ignore $(BIN)/pip install -q --no-build-isolation -e ".[dev]"
	@touch $@

setup: $(VENV)/.ready
	@$(BIN)/python -m edge_sdk.runtime.build

demo: setup
	@$(BIN)/server-toolkit demo --output demo-output

test: setup lint
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-aarch64: setup
	$(BIN)/python -m pytest -m slow -rs tests/edge_sdk/runtime/test_aarch64.py

wheels: setup
	@$(BIN)/python tools/wheels.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist demo-output edge_sdk/runtime/lib *.egg-info .mypy_cache .ruff_cache .pytest_cache
