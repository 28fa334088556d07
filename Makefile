# `make` alone lists the targets. Everything runs in .venv, made on first use from constraints.txt.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export DAGSTER_DISABLE_TELEMETRY := 1
export DBT_SEND_ANONYMOUS_USAGE_STATS := false
export DO_NOT_TRACK := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo up test lint bench clean setup

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=python3.x"; exit 1; }
	@echo "Setting up .venv (about a minute, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# pip compiles on one core; compileall takes them all.
	@$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]' 2>&1 | grep -v '^WARNING: Location' || true
	@$(BIN)/python -m compileall -q -j 0 $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') >/dev/null 2>&1 || true
	@$(BIN)/python -c 'import tokentra_dagster, dagster, dbt.version, psycopg, hypothesis'
	@touch $@

setup: .venv/ready ## make the virtual environment

demo: .venv/ready ## set up and run the whole platform once on simulated organisations
	@$(BIN)/tokentra demo

up: .venv/ready ## start the platform and the Dagster UI; Ctrl-C stops what it started
	@$(BIN)/tokentra up

test: .venv/ready ## set up and run all tests
	@$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/ready ## ruff, mypy (strict), sqlfluff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@# Both take half a minute and one core.
	@$(BIN)/mypy & types=$$!; $(BIN)/python tests/lint_sql.py; sql=$$?; wait $$types && exit $$sql

bench: .venv/ready ## measure: ratios, side by side, in one run
	@$(BIN)/python -m bench

clean: ## remove the database, builds and caches (keeps .venv)
	@if [ -x $(BIN)/tokentra ]; then $(BIN)/tokentra db stop >/dev/null 2>&1 || true; fi
	@rm -rf var dbt_project/target dbt_project/logs build .pytest_cache .mypy_cache .ruff_cache .hypothesis
