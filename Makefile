PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install demo test slow check bench

# The stamp is as new as the last install, so that a changed pyproject.toml installs again.
install: $(VENV)/installed
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: install
	rm -rf results/demo
	$(BIN)/smolctl study results/demo.toml
	$(BIN)/smolctl compare orig pow2 moe-160m --study demo
	$(BIN)/smolctl report --study demo --out results/demo/MODEL_CARD.md --html results/demo/card.html
	@echo
	@echo "Made: a study of two runs each of three arms, its model card and figures in results/demo;"
	@echo "look at results/demo/card.html. 100 steps show that it works, not which model is better."
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

# About three quarters of an hour on two idle cores, which nothing else should use meanwhile. SMOLCTL_DATA names
# the folder of novels, questions and tokenizer that the README tells of. llama.cpp is compiled at first.
bench: install
	@test -d "$(SMOLCTL_DATA)" || { echo "SMOLCTL_DATA names no folder; see Contributing in README.md."; exit 2; }
	$(BIN)/python -m pip install --quiet --editable ".[dev,lm-eval,llama-cpp]"
	for script in train_speed decode_speed eval_speed tokenization startup growth; do \
		$(BIN)/python benchmarks/$$script.py || exit; \
	done
	$(BIN)/python benchmarks/table.py
