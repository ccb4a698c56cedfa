PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python main.py --config=configs/digits.py

.PHONY: demo test test-all test-slow lint clean

demo: $(VENV)/ready  ## train, purify, attack and report on real digits
	$(RUN) --mode=train_classifier
	$(RUN) --mode=train
	$(RUN) --mode=eval_robust

test: $(VENV)/ready-test  ## every test not marked slow
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/ready-test
	$(BIN)/python -m pytest -m slow

test-all: test test-slow  ## every test

lint: $(VENV)/ready-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: requirements.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/ready-test: requirements-test.txt $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
