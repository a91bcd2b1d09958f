# Every target sets up what it needs; nothing has to be typed before.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo serve test test-unit drill check docs bench bench-gpu format lock manifests

setup: $(VENV)/.ready

# Written last, so that a set-up cut short is done again.
$(VENV)/.ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/python -m ray_jobs.demo $(if $(DATA),--data $(DATA))

serve: setup
	@test -n "$(BUNDLE)" || { echo "usage: make serve BUNDLE=DIR" >&2; exit 2; }
	$(BIN)/melanoma serve $(BUNDLE)

test: setup
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered --durations=25

test-unit: setup
	$(BIN)/python -m pytest tests/unit

drill: setup
	$(BIN)/python -m pytest -m "drill or fault" -s

# The libraries of the peers differ from those here.
PEERS := build/peers
BENCH := build/bench

bench: setup
	test -e $(PEERS)/.ready || ($(BIN)/python -m pip install --quiet --target $(PEERS) \
		litserve bentoml && touch $(PEERS)/.ready)
	rm -rf $(BENCH) && mkdir -p $(BENCH)
	$(BIN)/python -m benchmarks.random_bundle $(BENCH)/atto
	$(BIN)/python -m benchmarks.random_bundle $(BENCH)/tiny --backbone convnext_tiny --size 224x168
	$(BIN)/python -m benchmarks.start $(BENCH)/atto --json $(BENCH)/start.json
	$(BIN)/python -m benchmarks.pipelines $(BENCH)/atto --json $(BENCH)/pipelines.json
	$(BIN)/python -m benchmarks.training_speed --json $(BENCH)/training_speed.json
	$(BIN)/torchrun --nproc-per-node 2 -m benchmarks.training_speed \
		--json $(BENCH)/training_speed_torchrun.json
	$(BIN)/python -m benchmarks.serve_peers $(BENCH)/atto --peers $(PEERS) \
		--json $(BENCH)/serve_peers_atto.json
	$(BIN)/python -m benchmarks.serve_peers $(BENCH)/tiny --peers $(PEERS) --rounds 2 --seconds 8 \
		--json $(BENCH)/serve_peers_tiny.json
	for name in atto tiny; do \
		$(BIN)/python -m benchmarks.answer_steps $(BENCH)/$$name \
			--json $(BENCH)/answer_steps_$$name.json && \
		$(BIN)/python -m benchmarks.overload $(BENCH)/$$name \
			--json $(BENCH)/overload_$$name.json || exit 1; \
	done
	$(BIN)/python -m benchmarks.grad_cam_cost
	$(BIN)/python -m benchmarks.hostile_images
	$(BIN)/python -m benchmarks.speed $(BENCH)

bench-gpu: setup
	$(BIN)/python -m benchmarks.training_speed --gpu
	$(BIN)/python -m benchmarks.grad_cam_cost --gpu

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py

# A warning is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Writes both locks anew from pyproject.toml, with the hashes of all files of each version and for
# every supported Python. Versions stay as they are unless UPGRADE names packages to renew.
LOCK := build/lock/bin/uv pip compile --quiet pyproject.toml --universal --python-version 3.11 \
	--generate-hashes --no-annotate --no-header $(foreach name,$(UPGRADE),--upgrade-package $(name))

lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv
	$(LOCK) --extra dev --extra dicom --extra weights --output-file requirements.lock
	$(LOCK) --constraint requirements.lock --output-file k8s/requirements.lock

# Writes each Serve config anew from serve/config.yaml and the values beside it.
manifests: setup
	$(BIN)/python -m serve.render $(dir $(wildcard k8s/*/*/serve-values.yaml))
