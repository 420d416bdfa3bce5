# Everything that people type. Each target does all the set-up it needs; a second run sets up in seconds.
PYTHON := $(shell command -v python3.11 || command -v python3)
UV_VERSION := 0.13.8
BIN := .venv/bin
# Tests and demo start processes by the hundred: each would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE
PROTOS := $(shell find protos -name '*.proto') protos/hatch_build.py

.PHONY: help setup demo test check format bench bench-scheduler bench-training prove-objects prove-alone bench-coco-json fuzz chaos chaos-metrics chaos-leader model constraints clean

help:  ## This list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: .venv/.installed  ## The virtual environment with every tested version.

$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# Bytecode is compiled once here: torch and torchvision would otherwise cost each trainer seconds of imports.
.venv/.installed: pyproject.toml deploy/constraints.txt $(PROTOS) | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraints deploy/constraints.txt \
		--build-constraints deploy/constraints.txt --group dev --editable '.[demo,postgresql]'
	@touch $@

demo: setup  ## The main job, end to end: trains on real digits while metrics and logs stream out; checks itself.
	$(BIN)/sihlai demo

test: setup check  ## All tests.
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: setup  ## Style, types and the direction of dependency.
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --num-workers 2 --no-error-summary protos/hatch_build.py services runner tests/client/typed_use.py

format: setup  ## Formats Python and protos.
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .
	$(BIN)/buf format --write

prove-objects: setup  ## Trains each head for objects with three seeds, beside its bars: over an hour of two cores; SEEDS=1 for less.
	$(BIN)/python -m tests.bench.objects --seeds $(or $(SEEDS),3)

bench-coco-json: setup  ## Measures reading COCO's JSON at its full size: minutes, 1 GB of disk, 4 GB of memory.
	$(BIN)/python -m tests.bench.coco_json --json

bench: setup  ## Measures what the README promises; one JSON object a line.
	$(BIN)/python -m tests.bench.metrics --json
	$(BIN)/python -m tests.bench.conversion --json

bench-scheduler: setup  ## What the scheduler reaches, on both databases, and who notices a flood; LARGE=1 with a million jobs and 10,000 runners.
	$(BIN)/python -m tests.bench.scheduler --json $(if $(LARGE),--only million --only many-runners)
	$(if $(LARGE),,$(BIN)/python -m tests.bench.flood --json)

bench-training: setup  ## Measures trainings: accuracies after so many steps, and what they cost; ten minutes of two cores.
	$(BIN)/python -m tests.bench.training --json

prove-alone: setup  ## Measures text, anomalies and learning from images alone, three to five seeds: over an hour of two cores.
	$(BIN)/python -m tests.bench.alone

fuzz: setup  ## An hour of fuzzing of all that reads datasets; SECONDS=60 for less, SEED=1 for the same again.
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),3600) $(if $(SEED),--seed $(SEED))

chaos: setup  ## Ten minutes of disasters over a whole installation; SECONDS=120 for less, SEED=1 for the same again, JSON=1.
	$(BIN)/python -m tests.chaos.whole --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED)) $(if $(JSON),--json)

chaos-metrics: setup  ## Kills, failing inserts, full disks and more under load; ROUNDS=50, SEED=1 for the same again, JSON=1.
	$(BIN)/python -m tests.chaos.metrics --rounds $(or $(ROUNDS),50) $(if $(SEED),--seed $(SEED)) $(if $(JSON),--json)

model: setup  ## Drives the scheduler at random and checks its promises after each step: EXAMPLES=2000, DATABASE=postgresql, SEED=1.
	$(BIN)/python -m tests.scheduler.machine --examples $(or $(EXAMPLES),2000) --database $(or $(DATABASE),sqlite) $(if $(SEED),--seed $(SEED))

chaos-leader: setup  ## Kills, cuts off and stops the scheduler that leads on PostgreSQL, under load: 20, 20 and 5 times.
	$(BIN)/python -m tests.chaos.scheduler.leader --kills $(or $(KILLS),20) --cuts $(or $(CUTS),20) --hangs $(or $(HANGS),5)

constraints: $(BIN)/uv  ## Pins the newest versions that fit together; run the tests before committing the result.
	$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --python-version 3.11 --upgrade --quiet \
		--no-header --no-annotate --output-file deploy/constraints.txt

clean:  ## Removes everything that can be made again.
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find protos -name '*_pb2*' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
