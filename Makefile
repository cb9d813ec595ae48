# make setup | run | test | test-long | soak | conformance | e2e | browser | image | sbom | container-test
#      | findings-page | check | check-all | bench | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= qwen3-32b
EXAMPLE ?= machine:3090-bridges-4
IMAGE ?= localhost/wirelore
BASE ?= docker.io/library/python:3.13-slim

.PHONY: setup run test test-long soak conformance e2e browser image sbom container-test findings-page check check-all
.PHONY: bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "wirelore needs Python 3.10 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The main job: this machine's plan; without a GPU it says so and plans on a shipped example machine.
run: setup
	@$(BIN)/wirelore plan $(MODEL) || { code=$$?; [ $$code -eq 4 ] || exit $$code; \
	  echo; echo "No GPU here, so the same on a shipped example, $(EXAMPLE):"; echo; \
	  $(BIN)/wirelore plan $(MODEL) --from $(EXAMPLE); }

test: setup
	$(BIN)/pytest -q -n 2 --dist loadfile \
	  -m 'not long and not soak and not conformance and not e2e and not browser and not containers'

# What starts daemons or takes long: Slurm, Ray, Prometheus, links that are cut. What cannot be installed is skipped,
# aloud.
test-long: setup
	-scripts/install-system-packages lab mpi slurm prometheus fake-nvml
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray,manifests]'
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,k8s-test]'
	$(BIN)/pytest -q -m long

# Ten minutes of the agent on a machine that never stays as it is.
soak: setup
	$(BIN)/pytest -q -m soak

# The real engines' parsers, configurations and model classes, without a GPU; writes down in docs/engines.md what it saw.
conformance: setup
	scripts/setup-engines
	$(BIN)/pytest -q -n 2 --dist loadfile tests/conformance

# A tiny model, really served on this CPU from what is emitted: four servers, one after the other.
e2e: setup
	scripts/setup-engines
	$(BIN)/pytest -q tests/e2e

# The image, by podman: make image IMAGE=registry.example.com/wirelore:0.1.0
image:
	scripts/build-image $(IMAGE) --build-arg BASE=$(BASE)

# What is inside that image, as CycloneDX.
sbom:
	@podman run --rm --network none --entrypoint cat $(IMAGE) /opt/wirelore/share/sbom.cdx.json

# The image, and pods of it with a stub engine, under a real podman; skipped, aloud, where no container runs.
container-test: setup
	-scripts/setup-podman
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,compose]'
	$(BIN)/pytest -q tests/containers

# The page in a real Chromium: sizes, themes, without scripts, accessibility. Look at what lies in build/screenshots.
# Of the package that brings axe-core along only that file is used, so what else it wants stays away.
browser: setup
	-scripts/install-system-packages browser
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,browser]'
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps axe-playwright-python
	$(BIN)/pytest -q tests/browser

# docs/findings.md from the codes of the audit; a test tells when it is stale.
findings-page: setup
	$(BIN)/python scripts/write-findings-page

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The long ones: everything above, the real engines, the recorded machines, and the timings.
check-all: check test test-long soak conformance e2e browser container-test bench

# All of them, also where one misses its bar; then it says which.
bench: setup
	@missed=; bench() { echo "benchmarks/$$*"; $(BIN)/python benchmarks/$$* || missed="$$missed $$1"; }; \
	  bench corpus.py --index ../shared/topologies/index.jsonl; \
	  bench speed.py; \
	  [ ! -d ../shared/topologies ] || bench speed.py --files ../shared/topologies; \
	  bench fuzz.py; \
	  if [ -d ../shared/truth ]; then \
	    bench collectives.py --table ../shared/truth/collectives.csv; \
	    bench prediction.py --silicon ../shared/truth/silicon.csv; \
	    bench regret.py --decisions ../shared/truth/decisions.csv --silicon ../shared/truth/silicon.csv; \
	  fi; \
	  for name in measure_cost agent_cost fidelity honesty gpu_check; do bench $$name.py; done; \
	  [ -z "$$missed" ] || { echo "not reached:$$missed" >&2; exit 1; }

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
