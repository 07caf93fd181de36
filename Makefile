# Everything a developer or an operator types. `make` alone lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8080
PYTEST_ARGS ?=
FUZZ_ARGS ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: docs help run test check fuzz compat faults format lock image image-test bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## Start the service on an embedded demo, and print commands to try
	@$(BIN)/registry demo --port $(PORT)

test: $(VENV)/.servers ## Install what the tests need, real servers included, and run them all
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.checked ## Format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fuzz: $(VENV)/.servers ## Five minutes of hostile input for every parser; FUZZ_ARGS='--seconds 60 yaml'
	$(BIN)/python -m fuzz $(FUZZ_ARGS)

compat: $(VENV)/.servers ## Only the tests that drive real clients
	$(BIN)/python -m pytest tests/compat $(PYTEST_ARGS)

faults: $(VENV)/.servers ## Only the tests that break something under the running service
	$(BIN)/python -m pytest tests/faults $(PYTEST_ARGS)

format: $(VENV)/.checked ## Format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed ## Write docs/cli.md anew, from the commands themselves
	$(BIN)/python -m registry.cli.manual > docs/cli.md

lock: $(VENV)/.installed ## Write constraints.txt anew, for every Python that is supported
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --all-extras \
	    --no-annotate --no-header setup.cfg --output-file constraints.txt

image: ## Build the container image, with docker, podman or buildah
	tests/image.sh build

image-test: ## Build it, run it without any rights, and ask it the main job
	tests/image.sh test

bench: $(VENV)/.servers ## Measure what is promised about speed; BENCH_ARGS=track: beside MLflow
	$(BIN)/python -m benchmarks.run $(BENCH_ARGS)

clean: ## Remove what was installed and built; var/ stays
	rm -rf $(VENV) .venv-dvc .venv-mlflow .venv-mlflow-early .venv-mlflow-server .servers build *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.checked: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[check,postgresql]'
	@touch $@

$(VENV)/.servers: $(VENV)/.installed tests/install_servers.sh $(wildcard tests/requirements-*.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	PYTHON=$(BIN)/python sh tests/install_servers.sh
	@touch $@
