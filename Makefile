# Two commands: `make demo` and `make test`. Both build what they need in .venv first.
# No make variable, no environment of yours, has to be set.

UV ?= $(shell command -v uv 2>/dev/null || echo $(CURDIR)/.tools/uv/bin/uv)
PYTHON ?= python3
BIN := .venv/bin
# Without index lines and headers: a lock that names no registry.
COMPILE := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header
# Two processes take the files in turn, in the order of their names, or of tests/system/conftest.py, where each has a Label
# Studio of its own. xdist's own order has the files with few tests last, which are the long ones: one process would wait.
IN_TURN := -n 2 --dist loadfile --no-loadscope-reorder
# Wheels land in .venv by hard link from uv's cache: a second checkout costs seconds.
export UV_LINK_MODE ?= hardlink
export UV_PYTHON_DOWNLOADS ?= never
# Wheels hold no bytecode. Where Python may keep none, every process compiles all of PyTorch anew: 6 s of the CPU, as long
# as loading it takes.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test lint types imports unit system audit bench gpu-check docs lock clean chaos laws compat release

help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: .venv/.ready .tools/label-studio/.ready ## Build .venv and Label Studio's own environment

$(CURDIR)/.tools/uv/bin/uv:
	@echo "setup: installing uv into .tools"
	@$(PYTHON) -m pip install -q --disable-pip-version-check --target .tools/uv uv 2>/dev/null \
	|| { $(PYTHON) -m venv .tools/venv && .tools/venv/bin/python -m pip install -q uv \
	     && mkdir -p .tools/uv/bin && ln -sf $(CURDIR)/.tools/venv/bin/uv .tools/uv/bin/uv; } \
	|| { echo "setup: could not install uv: install it by hand and put it on PATH" >&2; exit 1; }

.venv/.ready: requirements.lock pyproject.toml | $(UV)
	@echo "setup: building .venv (several GB of torch the first time; seconds from a warm cache)"
	@$(UV) venv -q --allow-existing --python $(PYTHON) .venv
	@$(UV) pip sync -q --python .venv/bin/python --require-hashes requirements.lock
	@$(UV) pip install -q --python .venv/bin/python --no-deps --editable .
	@touch $@

# Label Studio pins an rq that clashes with ours, so it lives apart.
.tools/label-studio/.ready: requirements-label-studio.lock | $(UV)
	@echo "setup: building Label Studio's environment in .tools/label-studio"
	@$(UV) venv -q --allow-existing --python $(PYTHON) .tools/label-studio
	@$(UV) pip sync -q --python .tools/label-studio/bin/python --require-hashes requirements-label-studio.lock
	@touch $@

demo: setup ## Run the main job end to end (ROUNDS=3, IMAGES=folder LABELS=table, ARGS=...)
	@$(BIN)/ml-backend demo $(ARGS)

test: setup ## Lint, types, import contracts, then every test
	@$(MAKE) --no-print-directory --jobs=2 types lint imports
	@rm -rf .test-results && mkdir -p .test-results
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m pytest tests -m "not system" $(IN_TURN) --cov --cov-report= --cov-fail-under=0 --junit-xml=.test-results/fast.xml $(ARGS)
	@$(BIN)/python -m pytest tests/system $(IN_TURN) --cov --cov-append --cov-report=term --junit-xml=.test-results/system.xml $(ARGS)

lint: setup ## ruff: lint and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## mypy, strict
	@$(BIN)/mypy

imports: setup ## import-linter: the layers of architecture
	@$(BIN)/lint-imports

unit: setup ## Only the tests that need no service
	@$(BIN)/python -m pytest tests/unit -n 2 $(ARGS)

system: setup ## Only the tests on a real Label Studio
	@$(BIN)/python -m pytest tests/system $(IN_TURN) $(ARGS)

# --strict: a package that the registry says nothing about is a failure, and not a package without vulnerabilities.
# Each exception here is one that docs/security.md explains.
AUDIT_EXCEPTIONS :=

audit: $(UV) ## Look the locked packages up among the known vulnerabilities (needs the network)
	@$(UV) tool run --from 'pip-audit==2.10.1' pip-audit --strict --disable-pip --require-hashes \
		--progress-spinner off -r requirements.lock $(AUDIT_EXCEPTIONS)

chaos: setup ## Kill everything in every phase on a real Label Studio (KILLS=24, SEED=7)
	@AL_CHAOS_KILLS=$(or $(KILLS),24) AL_CHAOS_SEED=$(or $(SEED),7) $(BIN)/python -m pytest tests/system/test_chaos.py $(ARGS)

laws: setup ## The laws of the queue with many more examples (EXAMPLES=300)
	@AL_LAWS_EXAMPLES=$(or $(EXAMPLES),300) $(BIN)/python -m pytest tests/integration/test_queueing_laws.py $(ARGS)

compat: setup ## What works with which Label Studio (VERSIONS="1.22.0 1.23.2+postgres"; an hour and 4 GB for all)
	@$(BIN)/python -m tests.compat $(VERSIONS)

bench: setup $(if $(findstring --no-peers,$(ARGS)),,.bench/peers/.ready) ## Time the engine side by side with other libraries (ARGS="--no-peers pages")
	@mkdir -p .bench
	@$(BIN)/python -m tests.benchmarks.cases $(ARGS)

gpu-check: setup ## Test and time the engine on one GPU, within eight minutes (ARGS="gpu-check.json", ARGS=--tiny on a CPU)
	@$(BIN)/python -m tests.benchmarks.gpu_check $(ARGS)

.bench/peers/.ready: tests/benchmarks/peers.lock | $(UV)
	@echo "bench: building the peers' environment in .bench (several GB of torch, unless a cache has it)"
	@$(UV) venv -q --allow-existing --python $(PYTHON) .bench/peers
	@$(UV) pip sync -q --python .bench/peers/bin/python --require-hashes tests/benchmarks/peers.lock
	@touch $@

docs: setup ## Build the documentation in site/, without the network
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock: $(UV) ## Recompile the lock files: ours, the bench's peers', Label Studio's
	@$(UV) pip compile -q $(COMPILE) --all-extras --group pyproject.toml:dev pyproject.toml -o requirements.lock >/dev/null
	@grep -E '^(torch|torchvision|numpy|pillow|scipy)==' requirements.lock | tr -d '\\' > .tools/shared.txt
	@$(UV) pip compile -q $(COMPILE) --overrides tests/benchmarks/peers-left-out.txt -c .tools/shared.txt tests/benchmarks/peers.in -o tests/benchmarks/peers.lock >/dev/null
	@echo "label-studio==1.23.2" | $(UV) pip compile -q $(COMPILE) - -o requirements-label-studio.lock >/dev/null

release: setup ## Build what would be uploaded into dist/ and check it, every extra by itself (needs the network)
	@test -z "$$(git status --porcelain)" || { git status --short; echo "release: commit or remove these first" >&2; exit 1; }
	@rm -rf dist && $(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	@AL_DIST=dist AL_EACH_EXTRA=1 $(BIN)/python -m pytest -q tests/test_package.py $(ARGS)
	@echo "release: would be uploaded:" && ls -l dist && cd dist && sha256sum *

clean: ## Remove what the commands above built
	rm -rf dist .venv .tools .demo .bench .compat site .test-results .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage*
