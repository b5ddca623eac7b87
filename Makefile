# make help lists what there is. Every target sets up .venv itself; PY=... uses a ready environment instead.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PIP_ARGS ?=
ifeq ($(origin PY),undefined)
PY := .venv/bin/python
READY := .venv/.stamp-$(EXTRA)
endif
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export OMP_NUM_THREADS ?= 1

WORKERS ?= $(shell n=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 1); echo $$(( n < 4 ? n : 4 )))
PROCESSES ?= $(shell n=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 1); echo $$(( n < 4 ? n : 4 )))
CELEBA ?=
RUNS ?=
CACHE ?=
STORAGE ?=
RAY_ADDRESS ?=
MIN_WORKERS ?=
QUICK ?=
NAME ?=
FROM ?=
RECIPE ?=
SET ?=
TRIALS ?=
CONCURRENT ?=
SPACE ?=
SCHEDULER ?=
SET_AUTOENCODER ?=
MODEL ?= models:/celeba-beam@champion
N ?= 36
SEED ?= 0
OUT ?= samples.png
RUN ?=
MNIST ?=
ONLY ?=
REDO ?=
FACES ?=
TESTS ?= tests
KIND ?=
CASES ?=

.PHONY: help setup celeba-train cluster-check sweep paper report sample generate test test-slow test-long bench bench-startup bench-stages bench-scaling lint types audit clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.venv/.stamp-%: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	rm -f .venv/.stamp-*
	.venv/bin/python -m pip uninstall -q -y faiss-cpu faiss-gpu  # both own one folder: never install them together
	.venv/bin/python -m pip install $(PIP_ARGS) -q -c constraints.txt -e ".[$*,dev,bench]"
	touch $@

setup: $(READY) ## install into .venv (all other targets do it themselves); PIP_ARGS=... is passed to pip

# With RAY_ADDRESS=http://HOST:8265 a job is sent to that cluster (jobs/submit.py); else it runs, or joins, from here.
RUN_JOB = $(PY) -m $(if $(filter http://% https://%,$(RAY_ADDRESS)),jobs.submit $(1) --) $(2)
PLACES = $(if $(CELEBA),--celeba "$(CELEBA)") $(if $(RUNS),--runs "$(RUNS)") $(if $(CACHE),--cache "$(CACHE)")

celeba-train: $(READY) ## faces end to end; CELEBA=path WORKERS=n MIN_WORKERS=n RAY_ADDRESS=http://HOST:8265 RUNS=path CACHE=path STORAGE=s3://bucket/prefix RECIPE=r NAME=n FROM=stage SET="key=value ..." QUICK=1
	$(call RUN_JOB,,jobs.celeba_train) --workers $(WORKERS) $(if $(MIN_WORKERS),--min-workers $(MIN_WORKERS)) $(PLACES) $(if $(STORAGE),--storage "$(STORAGE)") $(if $(QUICK),--quick) \
	  $(if $(NAME),--name $(NAME)) $(if $(FROM),--from $(FROM)) $(if $(RECIPE),--recipe $(RECIPE)) \
	  $(foreach s,$(SET),--set $(s)) $(foreach s,$(SET_AUTOENCODER),--set-autoencoder $(s))

cluster-check: $(READY) ## what a run needs, on every node, before it; RAY_ADDRESS=... CELEBA=path RUNS=path CACHE=path WORKERS=n
	$(call RUN_JOB,--id cluster-check-$$(date -u +%Y%m%dT%H%M%S),jobs.cluster_check) $(PLACES) \
	  $(if $(filter file,$(origin WORKERS)),,--workers $(WORKERS))

sweep: $(READY) ## search settings; RECIPE=r CELEBA=path TRIALS=n SPACE="key=dist ..." SCHEDULER=asha|pbt|none QUICK=1
	$(PY) -m jobs.tune --workers $(if $(filter file,$(origin WORKERS)),1,$(WORKERS)) $(if $(CELEBA),--celeba "$(CELEBA)") $(if $(QUICK),--quick --concurrent 2) \
	  $(if $(RECIPE),--recipe $(RECIPE)) $(if $(TRIALS),--trials $(TRIALS)) $(if $(CONCURRENT),--concurrent $(CONCURRENT)) \
	  $(if $(SCHEDULER),--scheduler $(SCHEDULER)) $(if $(NAME),--name $(NAME)) $(if $(FROM),--from $(FROM)) \
	  $(foreach s,$(SPACE),--space "$(s)") $(foreach s,$(SET),--set $(s))

sample: $(READY) ## a PNG of samples; MODEL=models:/celeba-beam@champion N=36 SEED=0 OUT=samples.png
	$(PY) -m jobs.sample --model $(MODEL) --n $(N) --seed $(SEED) --out $(OUT)

# N and OUT have other defaults here than for one picture.
generate: $(READY) ## many samples as shards on Ray; MODEL=... N=50000 SEED=0 OUT=cache/samples WORKERS=n
	$(PY) -m jobs.generate --model "$(MODEL)" --n $(if $(filter file,$(origin N)),50000,$(N)) --seed $(SEED) \
	  --out "$(if $(filter file,$(origin OUT)),cache/samples,$(OUT))" --workers $(WORKERS)

paper: $(READY) ## the paper's experiments and claims; MNIST=folder ONLY="name ..." REDO="name ..." FACES=runs/NAME QUICK=1
	$(PY) -m jobs.paper $(if $(QUICK),--quick) $(if $(MNIST),--mnist "$(MNIST)") $(if $(FACES),--faces "$(FACES)") \
	  $(if $(ONLY),--only $(ONLY)) $(if $(REDO),--redo $(REDO))

report: $(READY) ## one HTML page about a run, a sweep, or several runs compared; RUN="name [name ...]"
	$(PY) -m jobs.report $(RUN)

test: $(READY) ## the default tests (minutes), some files at a time; TESTS=tests/exact for some, PROCESSES=1 for one by one
	$(PY) -m pytest -q --durations=25 -m "not slow" -n $(PROCESSES) --dist loadfile $(TESTS)

test-slow: $(READY) ## the slow tests (face-sized invariance, a killed Ray worker); KIND=ray or KIND="not ray" for a part
	$(PY) -m pytest -q --durations=25 -m "slow and not long$(if $(KIND), and $(KIND))" $(TESTS)

test-long: $(READY) ## those of many minutes, which CI leaves out (20 kills, sweeps whose server or PostgreSQL dies)
	$(PY) -m pytest -q -m long $(TESTS)

bench: $(READY) ## updates per second beside other RBM trainers and the machine's limit; CASES="name ..."
	$(PY) -W ignore -m benchmarks.updates $(if $(CASES),--cases $(CASES))

bench-startup: $(READY) ## seconds from the command to the first update, and to an answer; CASES="name ..."
	$(PY) -W ignore -m benchmarks.startup $(if $(CASES),--cases $(CASES))

bench-stages: $(READY) ## autoencoder and shard reading beside limits; RUN=name adds a whole main job's stages
	$(PY) -W ignore -m benchmarks.stages $(if $(RUN),--summary runs/$(RUN)/summary.json)

# On an idle machine; its figures go into docs/scaling.md.
bench-scaling: $(READY) ## weak and strong scaling over 1, 2 and 4 local workers beside the cost model
	$(PY) -W ignore -m benchmarks.scaling
	$(PY) -m benchmarks.scaling_page

lint: $(READY) ## ruff
	$(PY) -m ruff check . && $(PY) -m ruff format --check .

types: $(READY) ## mypy
	$(PY) -m mypy

audit: $(READY) ## known flaws of the pinned packages (pip-audit); needs the advisory service
	$(PY) -m pip_audit --progress-spinner off --disable-pip --no-deps -r constraints.txt

clean: ## remove .venv and tool caches; runs, cache and MLflow's store stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
