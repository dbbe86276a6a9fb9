# Short targets; CONTRIBUTING.md says what each is for.
PYTHON ?= python3
PORT ?= 5000
DATA ?= data
NODES ?= 3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: up test lint unit api contract node conformance test-clients test-failover test-slow test-compose load drill bench bench-auth bench-memory venv tools clean

up: venv
	@$(BIN)/registry-cluster up --nodes $(NODES) --port $(PORT) --data $(DATA)

test: venv tools lint
	$(PYTEST) -m "not slow"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit api contract node: venv
	$(PYTEST) -m "not slow" tests/$@

conformance: venv tools
	$(PYTEST) -m "not slow" -s tests/conformance/test_protocol.py \
	    tests/conformance/test_auth_protocol.py tests/conformance/test_official_suite.py \
	    tests/failover/test_conformance.py

test-clients: venv tools
	@deploy/bootstrap.sh more-tools
	$(PYTEST) tests/conformance

test-failover: venv tools
	$(PYTEST) tests/failover

test-slow: venv tools
	$(PYTEST) -m slow --ignore tests/conformance --ignore tests/compose

test-compose: venv tools
	@deploy/bootstrap.sh compose
	CI=true $(PYTEST) tests/compose

# On the cluster that `make up` runs; LOAD has locust's options.
LOAD ?= --headless --users 32 --spawn-rate 8 --run-time 60s --csv reports/load/load --html reports/load/load.html

load: venv
	$(BIN)/python -m locust -f tests/load/locustfile.py --cluster-data $(DATA) $(LOAD)

drill: venv tools
	PATH="$(CURDIR)/.tools/bin:$$PATH" $(BIN)/registry-cluster drill run all \
	    --locustfile tests/load/locustfile.py $(DRILL)

bench: venv tools
	$(BIN)/python -m tests.bench.bench --out reports/bench

bench-auth: venv
	$(BIN)/python -m tests.bench.auth

bench-memory: venv
	$(BIN)/python -m tests.bench.memory

venv:
	@PYTHON=$(PYTHON) deploy/bootstrap.sh venv

tools:
	@deploy/bootstrap.sh tools

clean:
	rm -rf .venv .tools dist reports .mypy_cache .pytest_cache .ruff_cache .hypothesis
