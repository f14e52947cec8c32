# `make` alone lists the targets. Each does the set-up that it needs, once.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.ready-bench
RUN := $(VENV)/bin/python -m

# Most tests wait, so that there may be more processes than cores: five, or as many as BESIDE says. Each starts servers of
# its own; a file's tests share them, and the long ones come first.
BESIDE_EACH_OTHER := -n $(or $(BESIDE),5) --dist loadfile --no-loadscope-reorder

# Else Python does not find what it is run in, or finds another's packages before those of the virtual environment; and
# each of the many processes that are started would compile all of the code anew, for a second or two.
unexport PYTHONSAFEPATH PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run cluster demo temporal temporal-server check lint unit test test-cluster soak chaos mutants bench format clean
.DELETE_ON_ERROR:

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Install what is needed into .venv (done by the others too)

run: $(READY) ## Run everything on this machine, until Ctrl-C; data is kept in .timemachine (with Prometheus: make run OBSERVE=1)
	@$(RUN) devstack run $(if $(OBSERVE),--observe)

cluster: $(READY) ## Run everything as in production, on this machine: a cluster of Temporal's, two APIs, two workers
	@$(RUN) devstack cluster

demo: $(READY) ## Show one job from its creation to the webhook, on a stack of its own
	@$(RUN) devstack demo

temporal: $(READY) ## Find the Temporal CLI, or download or build it
	@$(RUN) devstack temporal

check: $(READY) ## Check style, format and types, and run the tests that need no server: a minute
	@$(MAKE) --no-print-directory --jobs=2 lint unit

lint: $(READY) ## Check style, format and types
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy

unit: $(READY)
	@$(RUN) pytest -q tests/unit tests/replay

test: $(if $(filter-out tests/unit% tests/replay tests/replay/test_%,$(or $(filter tests%,$(ARGS)),tests)),temporal,$(READY)) ## Run all tests (some of them: make test ARGS="tests/unit -k names")
	@$(RUN) pytest $(or $(ARGS),$(BESIDE_EACH_OTHER))

temporal-server: $(READY)
	@$(RUN) devstack temporal-server

test-cluster: temporal temporal-server ## Run the tests that need servers on Temporal's newest server and Postgres, and as a cluster; then make chaos
	@$(RUN) pytest --cluster $(or $(ARGS),$(BESIDE_EACH_OTHER) tests/integration tests/e2e tests/cluster)
	@$(if $(ARGS),,$(MAKE) --no-print-directory chaos)

soak: temporal temporal-server ## Try the promises while parts die, a minute or two for each soak (for hours: make soak SOAK=full)
	@$(RUN) pytest -s -o python_files='soak_*.py' tests/soak $(ARGS)

chaos: temporal temporal-server ## Kill processes of a cluster under load, in four rounds (each, and freeze most: make chaos SOAK=full)
	@$(RUN) pytest -s -o python_files='soak_*.py' tests/soak/soak_chaos_cluster.py $(ARGS)

mutants: temporal ## Undo each mend, one at a time, and see its tests fail, for a quarter of an hour (some: make mutants ARGS="ledger")
	@$(RUN) tests.mutants $(ARGS)

bench: temporal $(BENCH_READY) ## Measure against others, for over an hour (for 5 minutes: make bench QUICK=1)
	@$(RUN) benchmarks $(if $(QUICK),--quick) $(ARGS)

format: $(READY) ## Put the code into the house format
	@$(RUN) ruff check --fix-only --quiet .
	@$(RUN) ruff format .

clean: ## Remove .venv and caches; the data in .timemachine stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made anew when the requirements change, so that nothing of the old ones stays.
$(READY): requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not:" \
			"name one that is, as in: make PYTHON=python3.12" >&2; \
		exit 1; \
	}
	@echo "installing requirements-dev.txt into $(VENV), once (a minute or so)"
	@rm -rf $(VENV)
	@if command -v uv >/dev/null; then \
		uv venv --quiet --python "$$(command -v $(PYTHON))" $(VENV) && \
		uv pip install --quiet --python $(VENV)/bin/python --require-hashes -r requirements-dev.txt; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt; \
	fi
	@touch $@

$(BENCH_READY): requirements-bench.txt $(READY)
	@echo "installing requirements-bench.txt into $(VENV), once"
	@if command -v uv >/dev/null; then \
		uv pip install --quiet --python $(VENV)/bin/python --require-hashes -r requirements-bench.txt; \
	else \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.txt; \
	fi
	@touch $@
