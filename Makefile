# Two commands do all the set-up: `make demo` and `make test`. Both build on `install`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   ?= untaxed-demo

.PHONY: demo test install lint format types bench docs clean

install: $(VENV)/installed

# torch first and by itself: a CPU build is taken where one is configured, and nothing later replaces it.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e '.[train,report,eval,smollm2,dev]'
	touch $@

demo: install
	$(BIN)/untaxed demo --out $(DEMO)

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check untaxed tests benchmarks studies
	$(BIN)/ruff format --check untaxed tests benchmarks studies

format: install
	$(BIN)/ruff check --fix untaxed tests benchmarks studies
	$(BIN)/ruff format untaxed tests benchmarks studies

types: install
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/run_cost.py
	$(BIN)/python benchmarks/import_time.py

# The documentation is Markdown that is read where it lies; `docs` runs every example in it.
docs: install
	$(BIN)/python -m pytest tests/test_documents.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
