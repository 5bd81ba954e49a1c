# The commands of the project; `make` alone lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/dev.txt
STAMP := $(VENV)/installed-$(shell cat $(LOCK) requirements/uv.txt | sha256sum | cut -c1-16)
export UV_PYTHON_DOWNLOADS := never
export PYTHONUNBUFFERED := 1
# Threads that spin while they wait take the cores from other processes.
export OMP_WAIT_POLICY ?= PASSIVE
# Tests and studies start hundreds of processes: each compiles all it imports where compiled files are not kept.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo run test test-compose test-hosts test-gpu fuzz chaos soak check format lint types contracts catalog reference lock migration bench bench-ranking evidence audit clean

help: ## List these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## Build the environment in .venv from the hashed lock

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python $(LOCK) requirements/uv.txt
	@rm -f $(VENV)/installed-*
	@touch $@

demo: install ## Three minutes: find wrong labels, then learn the object where labels name the scene
	$(BIN)/python -m examples.demo

run: install ## Serve on loopback until Ctrl-C
	@exec $(BIN)/python -m worker.embedded

# A separate environment: $(1) its folder, $(2) its lock. The stamp's name changes with the lock.
define separate_environment
	$(PYTHON) -m venv $(1)
	$(BIN)/uv pip sync --quiet --require-hashes --python $(1)/bin/python $(2)
	@rm -f $(1)/installed-*
	@touch $@
endef

# The packages that exports are made for read them in an environment of their own: together they would not fit into ours.
READERS := .venv-readers
READERS_STAMP := $(READERS)/installed-$(shell cat requirements/readers.txt requirements/uv.txt | sha256sum | cut -c1-16)
$(READERS_STAMP): | $(STAMP)
	$(call separate_environment,$(READERS),requirements/readers.txt)

# Memory in large pages: tests take a third of the time for it where pages are looked up slowly (docs/log.md).
test test-hosts fuzz check: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
test test-hosts fuzz check: export PYTHONMALLOC ?= malloc

# Tests that nothing may run beside are marked `alone` and run first, one after the other. Many of the rest wait for
# processes that they start: more test processes than cores keep the cores busy.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder
test: install $(READERS_STAMP) ## All tests, real Postgres and Redis included
	$(BIN)/python -m pytest -m alone $$(grep -rlF "mark.alone" tests --include="test_*.py"); alone=$$?; \
	$(BIN)/python -m pytest $(PARALLEL) -m "not alone" -rs && exit $$alone

test-hosts: install ## Two hosts on this machine, one cut off during a job (root and iproute2; part of `make test`)
	$(BIN)/python -m pytest tests/hosts -rs

test-compose: install ## Build the images and run the whole stack in containers (Debian, root; see tests/compose)
	$(BIN)/python -m tests.compose

# Both take ARGS, such as ARGS="--smallest" or ARGS="--minutes 3 --stack sqlite" (`python -m tests.endurance --help`).
chaos: install ## Jobs and predictions while a random process is killed every 15 s; 10 minutes on each stack
	$(BIN)/python -m tests.endurance chaos $(ARGS)

soak: install ## 64 clients beside a training: honest errors, flat memory; 10 minutes on each stack
	$(BIN)/python -m tests.endurance soak $(ARGS)

check: lint types contracts ## Format, lint, types, import contracts and the fast tests
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not browser and not alone"

test-gpu: install ## Tests that need a GPU: training in bf16, exact resume, recorded steps, T7
	$(BIN)/python -m pytest tests/gpu -rs --timeout 900

FUZZ_EXAMPLES ?= 200
FUZZ_SECONDS ?= 60
fuzz: install ## FUZZ_EXAMPLES requests of each operation, then FUZZ_SECONDS of coverage-guided bytes for each parser
	$(BIN)/python -m tests.fuzz --examples $(FUZZ_EXAMPLES)
	$(BIN)/python -m tests.fuzz.coverage_guided all --seconds $(FUZZ_SECONDS)

lint: install ## Format and lint, without changing anything
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: install ## mypy, strict
	$(BIN)/mypy

contracts: install ## The import contracts of ARCHITECTURE.md
	$(BIN)/lint-imports

format: install ## Rewrite the code in its format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

catalog: install ## Write app/catalog.json: what ml can train
	$(BIN)/python -m ml catalog > app/catalog.json.tmp && mv app/catalog.json.tmp app/catalog.json

reference: install ## Write docs/reference from settings, catalog and problems
	$(BIN)/python -m app.reference

migration: install ## Draft a migration: make migration WHAT="add a column"
	$(BIN)/python -m migrations revision "$(WHAT)"

# The servers that ours is compared with have an environment of their own, in which ours comes after their packages.
BENCH := .venv-bench
BENCH_STAMP := $(BENCH)/installed-$(shell cat requirements/bench.txt $(LOCK) requirements/uv.txt | sha256sum | cut -c1-16)
SITE := import sysconfig; print(sysconfig.get_path("purelib"))
bench: install $(BENCH_STAMP) ## Benchmarks, one JSON line each, and a table of the targets
	$(BIN)/python -m tests.benchmarks

bench-ranking: install $(BENCH_STAMP) ## Wrong labels found, against cleanlab: DATA=folder of the sets; an hour
	$(BIN)/python -m tests.benchmarks.ranking $(DATA)

EVIDENCE := small_scenes $(if $(DATA),small_cifar10 readings)
evidence: install ## The studies behind docs/evidence, resumed where they stopped: DATA=folder of the sets; hours
	set -e; for study in $(EVIDENCE); do \
	  $(BIN)/python -m ml study $$study --jobs 2 $(if $(DATA),--data cifar10=$(DATA)/cifar10); \
	  cp studies/$$study/table.md docs/evidence/$$study.md; \
	done
	@$(if $(DATA),:,echo "Scenes alone: the studies of CIFAR-10 need DATA=FOLDER with the folder cifar10 in it.")

$(BENCH_STAMP):
	$(PYTHON) -m venv $(BENCH)
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode --python $(BENCH)/bin/python requirements/bench.txt
	$(BIN)/python -c '$(SITE)' > "$$($(BENCH)/bin/python -c '$(SITE)')/product.pth"
	@rm -f $(BENCH)/installed-*
	@touch $@

COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11
# Triton compiles kernels for `torch.compile`, which nothing of ours calls: a gigabyte.
WORKER := pyproject.toml --extra worker --extra embedded --extra backbone --extra timm --extra parquet --extra s3 --no-emit-package triton
lock: install ## Resolve the dependencies of pyproject.toml anew
	echo uv | $(COMPILE) - -o requirements/uv.txt
	$(COMPILE) pyproject.toml --extra s3 -o requirements/api.txt
	$(COMPILE) $(WORKER) -c requirements/api.txt -o requirements/worker.txt
	$(COMPILE) $(WORKER) -c requirements/worker.txt $$(sed -nE 's/^((torch|torchvision|(nvidia|cuda)-[a-z0-9-]+))==.*/--no-emit-package \1/p' requirements/worker.txt) -o requirements/worker-cpu.txt
	$(COMPILE) $(WORKER) --extra dev -c requirements/worker.txt -o requirements/dev.txt
	echo 'pip-audit>=2.10' | $(COMPILE) - -o requirements/audit.txt
	printf 'bentoml>=1.4\nlitserve>=0.2\ncleanlab>=2.9\n' | $(COMPILE) - -o requirements/bench.txt
	printf 'cleanlab[datalab]>=2.9\ndatasets>=5\nlabel-studio-sdk>=2\npandas>=3\npycocotools>=2\nwebdataset>=1\n' | $(COMPILE) - -o requirements/readers.txt

# What looks for vulnerabilities has an environment of its own: its packages are none of ours.
AUDIT := .venv-audit
AUDIT_STAMP := $(AUDIT)/installed-$(shell cat requirements/audit.txt requirements/uv.txt | sha256sum | cut -c1-16)
$(AUDIT_STAMP): | $(STAMP)
	$(call separate_environment,$(AUDIT),requirements/audit.txt)

audit: install $(AUDIT_STAMP) ## Known vulnerabilities of all locked packages (asks an advisory database), and their licences
	$(BIN)/python requirements/audit.py $(AUDIT)/bin/pip-audit

clean: ## Remove the environment and caches; data stays
	rm -rf $(VENV) $(BENCH) $(READERS) $(AUDIT) .mypy_cache .ruff_cache .hypothesis .import_linter_cache
