# Each target does its own set-up: a virtual environment in .venv, made once.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# Without an NVIDIA GPU one version of torch is named, so that a CPU build of it, where an index or a
# local folder of wheels offers one, is taken instead of the newest build with its gigabytes of CUDA.
# TORCH_INDEX names an index to install torch (and only torch) from.
GPU := $(or $(shell command -v nvidia-smi 2>/dev/null),$(wildcard /proc/driver/nvidia/version))
TORCH ?= $(if $(GPU),torch>=2.6$(comma)<2.14,torch==2.13.0)
TORCH_INDEX ?=
comma := ,

# Processes of the tests compute with one thread each; so many tests run side by side.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -le 8 ] || n=8; echo $$n)
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist worksteal

# Where `make bench` and `make bench-full` put what they measure; a run that is there is taken up.
# PAIRS names a file of model pairs, without which the shipped pair is measured.
RESULTS ?= results
PAIRS ?=
BENCH := $(RUN) -m bench.cli
SWEEP := $(BENCH) sweep --output $(RESULTS) --allow-failures $(if $(PAIRS),--pairs $(PAIRS))
LEGACY := $(BENCH) legacy --output $(RESULTS) $(if $(PAIRS),--pairs $(PAIRS))

# How long `make fuzz` looks for inputs that break a decoder.
FUZZ_SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help install demo test test-failed test-slow gpu fuzz docs-check lint type models quick prefix slow-reader acceptance peers handoff recovery bench bench-full bench-smoke clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Variables: PYTHON=$(PYTHON) TORCH='$(TORCH)' TORCH_INDEX='$(TORCH_INDEX)' WORKERS=$(WORKERS)"
	@echo "On a machine without a GPU, TORCH_INDEX=<an index with CPU builds of torch> saves gigabytes."

install: $(STAMP) ## make the virtual environment .venv with everything in it

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.10 to 3.13 is needed; set PYTHON=python3.11 or the like" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)') '$(TORCH)'
	$(RUN) -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: install ## start a server, answer three prompts with and without speculation, stop
	@$(RUN) -m launcher.demo

test: install ## run the tests that need neither minutes nor a GPU
	$(PYTEST) -m "not slow and not gpu"

test-failed: install ## run once more, one by one, the tests that failed last
	OMP_NUM_THREADS=1 $(RUN) -m pytest --last-failed --last-failed-no-failures none -m "not slow and not gpu"

test-slow: install ## run the tests that take long
	$(PYTEST) -m "slow and not gpu" --timeout 1800

# Another environment that has the packages of pyproject.toml: make gpu RUN=python3
gpu: $(if $(filter $(VENV)/%,$(RUN)),install) ## on a GPU: its tests, every topology's losslessness, docs/gpu_facts.md
	@$(RUN) -m pytest -m gpu; tests=$$?; $(RUN) -m bench.gpu_facts && exit $$tests

fuzz: install ## fuzz the decoders of messages, guided by coverage, for FUZZ_SECONDS
	$(RUN) tests/fuzz/fuzz_wire.py $(FUZZ_SECONDS)

docs-check: install ## run every command of the README, check tables and links
	$(PYTEST) tests/docs

lint: install ## check format and style
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

type: install ## check types
	$(RUN) -m mypy

models: install ## train the shipped model pair again (up to two hours; resumes)
	$(RUN) -m bench.models.train
	$(RUN) -m bench.models.evaluate --verifier build/models/exported/verifier \
		--draft build/models/exported/draft

quick: install ## compare with transformers' generate on the shipped pair
	$(RUN) -m bench.quick

prefix: install ## time to first token of requests that share a prompt's beginning
	$(RUN) -m bench.prefix

slow-reader: install ## time per token of clients beside one that does not read
	$(RUN) -m bench.slow_reader

acceptance: install ## count the draft tokens that both acceptance rules keep
	$(RUN) -m bench.acceptance --page docs/acceptance.md

peers: install ## compare with the engines that a user would pick instead; installs them first
	-$(BENCH) peers --setup $(if $(TORCH_INDEX),--pip-option=--extra-index-url=$(TORCH_INDEX))
	$(BENCH) peers --budget 40m

handoff: install ## what handing work between processes costs, in every topology
	$(RUN) -m bench.handoff

recovery: install ## how long a process that was killed is missed, in every topology
	$(RUN) -m bench.recovery

bench: install ## compare the topologies at 1, 8 and 32 clients, with a report, in under 10 minutes
	$(SWEEP) --concurrency 1,8,32 --blocks 9 --seconds 2 --ramp 0.8 --budget 7m
	-$(LEGACY)
	@test -e $(RESULTS)/concurrent.json || $(BENCH) concurrent --output $(RESULTS)
	@$(BENCH) report $(RESULTS)

bench-full: install ## the same at 1 to 128 clients, as in the source documents, in hours
	$(SWEEP) --concurrency 1,2,4,6,8,10,12,16,32,64,72,84,96,128 --option max-num-seqs=128 \
		--blocks 16 --seconds 10 --ramp 5 --precision 0.03 --budget 4h
	-$(LEGACY) --window 60s
	@test -e $(RESULTS)/concurrent.json || $(BENCH) concurrent --output $(RESULTS)
	@$(BENCH) report $(RESULTS)

bench-smoke: install ## a sweep of under a minute, which shows that all of it works and nothing else
	$(BENCH) sweep --output build/bench-smoke --restart --concurrency 1,4 --blocks 2 \
		--seconds 0.4 --ramp 0.2 --budget 1m

clean: ## remove the virtual environment, caches and built packages
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find bench gateway launcher pdv_mp tests -name __pycache__ -type d -prune -exec rm -rf {} +
