# Each target sets up what it needs in .venv, once; `make clean` forgets it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test test-all cpp-sanitize lint format bench zoo clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@# Types of TensorRT for a test. They ask for a TensorRT, which is not for every machine; without them it is left out.
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps tensorrt-stubs
	touch $@

demo: $(STAMP) ## Train, export, verify, run and time a RepVGG on real images
	$(BIN)/python examples/demo.py

test: $(STAMP) ## The default tests; says at the end what was left out, and why
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -rs

test-all: $(STAMP) ## The slow tests too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -rs -m ''

cpp-sanitize: $(STAMP) ## The C++ runtime under sanitizers and valgrind
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -m '' tests/runtime/cpp/test_sanitizers.py

lint: $(STAMP) ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 -p runtime -p calib
	$(BIN)/lint-imports --no-cache

format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Every benchmark of benchmarks/, one after the other
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

zoo: $(STAMP) ## Export, build and time every model: docs/zoo.md, .csv, .svg; goes on where it stopped
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.zoo

clean: ## Remove the virtual environment and what the tools left
	rm -rf $(VENV) demo_output build *.egg-info .pytest_cache .mypy_cache .ruff_cache
