# Every target sets up what it needs: a virtual environment with the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
RUN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test oldest fuzz crash lint docs setup models benchmarks profile clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## Sample the same noise in full and with early exits: a table and a picture
	$(RUN)/adadiff demo

test: $(READY) ## Run the tests and the examples of the docstrings
	$(RUN)/python -m pytest -n 2 --dist loadfile

oldest: $(OLDEST)/.ready ## Run the tests of models and of stock pipelines with the oldest diffusers that is supported
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest tests/exits tests/sampling tests/stock tests/calibration/test_stock.py tests/cli/test_stock.py

fuzz: $(READY) ## Run the long form of the tests with damaged input of every kind
	ADADIFF_FUZZ=20 $(RUN)/python -m pytest tests/test_fuzz.py tests/serving/test_service.py

crash: $(READY) ## Run the long form of the test that kills work at random moments
	ADADIFF_CRASHES=100 $(RUN)/python -m pytest tests/test_crash.py
	ADADIFF_CRASHES=20 $(RUN)/python -m pytest tests/serving/test_jobs_crash.py
	$(RUN)/python benchmarks/serving_crash.py --kills 20

lint: $(READY) ## Check style, format, types, sizes of files and functions, layers and circles
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/python scripts/size_limits.py
	$(RUN)/lint-imports --no-logo

docs: $(READY) ## Build the documentation with its API reference into site/
	$(RUN)/mkdocs build --strict

setup: $(READY) ## Make the virtual environment

$(READY): pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

$(OLDEST)/.ready: pyproject.toml constraints.txt constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	awk -F== 'NR == FNR { old[$$1]; print; next } !($$1 in old)' constraints-oldest.txt constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt --editable '.[dev]'
	touch $@

models: $(READY) ## Train, export and tune the digits model that comes with the package
	$(RUN)/adadiff train digits --out runs/digits
	rm -rf src/adadiff/pretrained/digits
	$(RUN)/adadiff export runs/digits src/adadiff/pretrained/digits
	$(RUN)/adadiff tune src/adadiff/pretrained/digits --data digits --compute 0.45 --trials 20 --images 250 1000 --confirm 2000 \
		--out runs/digits-plan
	cp runs/digits-plan/exit_policy.json src/adadiff/pretrained/digits

benchmarks: $(READY) ## Print timings, which are never asserted
	$(RUN)/python benchmarks/adaptive_depth.py
	$(RUN)/python benchmarks/training_step.py
	$(RUN)/python benchmarks/guidance.py
	$(RUN)/python benchmarks/startup.py
	$(RUN)/python benchmarks/corrections.py
	$(RUN)/python benchmarks/digits_quality.py
	$(RUN)/python benchmarks/serving.py
	$(RUN)/python benchmarks/serving_traffic.py
	$(RUN)/python benchmarks/serving_overload.py
	$(RUN)/python benchmarks/serving_soak.py

profile: $(READY) ## Print the operators that sampling spends its time on, and write a trace
	$(RUN)/python benchmarks/profile_sampling.py

clean: ## Remove the environment and everything built
	rm -rf $(VENV) $(OLDEST) build dist site src/*.egg-info
