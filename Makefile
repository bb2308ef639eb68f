PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = $(BIN)/smolctl train --scale nano --steps 150 --study demo

.PHONY: install demo test slow check bench

# The stamp is as new as the last install, so that a changed pyproject.toml installs again.
install: $(VENV)/installed
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: install
	rm -rf results/demo
	@echo "Training 1 of 3: orig"
	$(DEMO) --variant orig
	@echo "Training 2 of 3: pow2"
	$(DEMO) --variant pow2
	@echo "Training 3 of 3: moe-160m"
	$(DEMO) --variant moe-160m
	$(BIN)/smolctl compare orig pow2 moe-160m --study demo
	$(BIN)/smolctl report --study demo > results/demo/MODEL_CARD.md
	@echo
	@echo "Made: three runs and a card in results/demo, each run with run.json, train.csv, val.csv,"
	@echo "eval.csv and its final weights. 150 steps show that it works, not which model is better."
	@echo "Next: $(BIN)/smolctl train --variant pow2 --scale nano --steps 300 --data YOUR_TEXT"

test: install
	$(BIN)/python -m pytest

slow: install
	$(BIN)/python -m pytest -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

bench: install
	$(BIN)/python benchmarks/train_speed.py
