# The whole of the project's automation. `make help` lists it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test slow lint format constraints clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

demo: .venv/demo ## train and apply a 3-D U-Net on an MRI volume; about 6 minutes
	$(BIN)/python -m examples.mri_segmentation --folder demo

test: .venv/test ## the everyday tests; at most 12 minutes
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

slow: .venv/test ## the slow tests, and every kernel once more, as XLA compiles it for users
	XLA_FLAGS= $(BIN)/python -m pytest -m slow -n 2 --dist worksteal
	XLA_FLAGS= $(BIN)/python -m pytest tests/kernels/test_against_reference.py -n 2 --dist worksteal

lint: .venv/dev ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/dev ## put the code in its one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: ## choose versions anew, in a clean environment
	rm -rf .venv && $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

clean: ## remove the environment and the demo's output
	rm -rf .venv demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

# One stamp per extra: installed again when the requirements change.
.venv/%: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@
