# `make demo` and `make test` set up what they need: a virtual environment with the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test fuzz crash lint setup models benchmarks clean

demo: $(READY)
	$(RUN)/adadiff demo

test: $(READY)
	$(RUN)/python -m pytest

# Longer forms of two tests: damaged input of every kind, and work killed at random moments.
fuzz: $(READY)
	ADADIFF_FUZZ=20 $(RUN)/python -m pytest tests/test_fuzz.py

crash: $(READY)
	ADADIFF_CRASHES=100 $(RUN)/python -m pytest tests/test_crash.py

lint: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The digits model that comes with the package, in its place.
models: $(READY)
	$(RUN)/adadiff train digits --out runs/digits
	rm -rf src/adadiff/models/digits
	$(RUN)/adadiff export runs/digits src/adadiff/models/digits
	$(RUN)/adadiff calibrate src/adadiff/models/digits --compute 0.55 --batch-size 96

# Timings are printed, never asserted.
benchmarks: $(READY)
	$(RUN)/python benchmarks/adaptive_depth.py
	$(RUN)/python benchmarks/training_step.py
	$(RUN)/python benchmarks/guidance.py
	$(RUN)/python benchmarks/startup.py
	$(RUN)/python benchmarks/corrections.py
	$(RUN)/python benchmarks/digits_quality.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info
