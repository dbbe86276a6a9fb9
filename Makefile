# Short targets; what they do is in CONTRIBUTING.md.
PYTHON ?= python3
PORT ?= 5000
DATA ?= data
BIN := .venv/bin
RUN := $(BIN)/python -m

.PHONY: up test lint unit api contract conformance test-clients bench clean

.venv/installed: pyproject.toml deploy/bootstrap.sh
	PYTHON=$(PYTHON) deploy/bootstrap.sh venv
	@touch $@

up: .venv/installed
	@$(BIN)/registry-cluster up --port $(PORT) --data $(DATA)
