PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install demo test slow check bench soak

# The stamp records the last install: a changed pyproject.toml installs again.
install: $(VENV)/installed
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/smolctl study results/demo.toml --at-once 2
	$(BIN)/smolctl compare orig orig-again pow2 moe-160m --study demo
	$(BIN)/smolctl report --study demo --out results/demo/MODEL_CARD.md --html results/demo/card.html
	@echo
	@echo "Made: a study of two runs each of three arms and a control, its model card and figures in"
	@echo "results/demo; look at results/demo/card.html. orig-again is orig once more on the same data: any"
	@echo "difference between them is chance. 40 steps show that it works, not which model is better."
	@echo "Next: $(BIN)/smolctl train --variant pow2 --scale nano --steps 300 --data YOUR_TEXT"

# One process per core, each with one thread: the models of the tests are too small for more.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto --maxprocesses 4 --dist loadfile

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

# About an hour on two otherwise idle cores. SMOLCTL_DATA names the folder of novels,
# questions and tokenizer that docs/contributing.md describes. The first run compiles llama.cpp.
bench: install
	@test -d "$(SMOLCTL_DATA)" || { echo "SMOLCTL_DATA does not name a folder; see docs/contributing.md."; exit 2; }
	$(BIN)/python -m pip install --quiet --editable ".[dev,lm-eval,llama-cpp]"
	for script in train_speed decode_speed eval_speed tokenization startup growth; do \
		$(BIN)/python benchmarks/$$script.py || exit; \
	done
	$(BIN)/python benchmarks/table.py

# Kills, bad input, full disks and shared work for ten minutes, or MINUTES=60. It fails if one trial does,
# and says how to repeat it. WRITE=docs/reliability.md writes the counts there.
MINUTES ?= 10
SEED ?= 0
soak: install
	PYTHONPATH=tests $(BIN)/python -m soak --minutes $(MINUTES) --seed $(SEED) $(if $(WRITE),--write $(WRITE))
