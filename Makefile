# Every target sets up what it needs; nothing has to be typed before.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo serve test test-unit drill check bench format lock manifests

setup: $(VENV)/.ready

# Written last, so that a set-up cut short is done again.
$(VENV)/.ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/python -m ray_jobs.demo $(if $(DATA),--data $(DATA))

serve: setup
	@test -n "$(BUNDLE)" || { echo "usage: make serve BUNDLE=DIR" >&2; exit 2; }
	$(BIN)/melanoma serve $(BUNDLE)

test: setup
	$(BIN)/python -m pytest

test-unit: setup
	$(BIN)/python -m pytest tests/unit

drill: setup
	$(BIN)/python -m pytest -m "drill or fault" -s

bench: setup
	$(BIN)/python -m benchmarks.training_speed
	$(BIN)/python -m benchmarks.grad_cam_cost
	$(BIN)/python -m benchmarks.hostile_images

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Writes the lock anew from pyproject.toml, in an environment of its own.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet setuptools wheel ".[dev,weights]"
	build/lock/bin/python -m pip freeze --all --exclude melanoma --exclude pip > requirements.lock

# Writes each overlay's Serve config anew from serve/config.yaml and its own values.
manifests: setup
	$(BIN)/python -m serve.render $(dir $(wildcard k8s/overlays/*/serve/serve-values.yaml))
