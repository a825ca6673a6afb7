# Two commands set everything up: `make demo` and `make test`. Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types unit fuzz test-lowest clean

# constraints.txt: the versions that everything is tested with.
$(BIN)/.installed: pyproject.toml bases/aid/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' --editable ./bases/aid
	touch $@

## the main job on the built-in scenes
demo: $(BIN)/.installed
	$(BIN)/geodistill scenes demo/scenes
	$(BIN)/geodistill distill demo/scenes --config demo --out demo/run
	$(BIN)/geodistill evaluate demo/run --data demo/scenes --protocol probe --seeds 3
	@echo "images: demo/run/distilled   sample grid: demo/run/grid.png"

test: lint types unit

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(BIN)/.installed
	$(BIN)/mypy

unit: $(BIN)/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(if $(ALL),-m "slow or not slow")

## more than a thousand damaged image files, archives, lists and labels: each is read or refused with a message
fuzz: $(BIN)/.installed
	FUZZ=1 $(BIN)/python -m pytest tests/scenes/test_fuzz.py -s

## the same tests with the lowest versions that pyproject.toml allows
test-lowest: requirements-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint $< --editable '.[dev]' --editable ./bases/aid
	.venv-lowest/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

clean:
	rm -rf $(VENV) .venv-lowest demo build dist
