PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python main.py --config=configs/digits.py

# Where `make cifar10` works, and what it adds to its commands.
CIFAR10_RUN ?= runs/cifar10_resnet20
CIFAR10 := $(BIN)/python main.py --config=configs/cifar10.py:resnet20 --workdir=$(CIFAR10_RUN)

.PHONY: demo cifar10 cifar10-data test test-all test-slow test-faults lint clean

demo: $(VENV)/ready  ## train, purify, attack and report on real digits
	$(RUN) --mode=train_classifier
	$(RUN:digits.py=digits.py:pgd_at) --mode=train_classifier
	$(RUN) --mode=train
	$(RUN) --mode=eval_robust
	$(RUN) --mode=report

cifar10: $(VENV)/ready  ## evaluate a purified ResNet-20: TFDS_DATA_DIR=DIR [CLASSIFIER=FILE]
	test -e $(CIFAR10_RUN)/score || \
	  $(CIFAR10) --mode=import_weights --input=pretrained/cifar10_unet.safetensors
ifdef CLASSIFIER
	if test -e $(CIFAR10_RUN)/classifier; \
	then echo "$(CIFAR10_RUN)/classifier is there: taken instead of $(CLASSIFIER)"; \
	else $(CIFAR10) --mode=import_weights --input="$(CLASSIFIER)" --arch=resnet20; fi
endif
	$(CIFAR10) --mode=eval_robust $(ARGS)

cifar10-data: $(VENV)/ready  ## download and prepare the full CIFAR-10 into TFDS_DATA_DIR
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-tensorflow.txt
	$(BIN)/python -c "import tensorflow_datasets as tfds; \
	  tfds.builder('cifar10', file_format='array_record').download_and_prepare()"

# The longest files come first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder --durations=10

# In three processes on two cores: each also waits for others that it starts.
test: $(VENV)/ready-test  ## every test not marked slow
	$(PYTEST) -n 3 -m "not slow"

test-slow: $(VENV)/ready-test
	$(PYTEST) -n 2 -m slow $(ARGS)

test-all: test test-slow  ## every test

# Ends every command at each of its changes to the disk: hours; ARGS=--minutes=8 for a sample.
test-faults: $(VENV)/ready-test
	$(BIN)/python -m tests.faults $(ARGS)

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
