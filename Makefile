# make quickstart | make test | make bench: each sets up .venv first, needing nothing but Python 3.11 to 3.13.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export VLLM_NO_USAGE_STATS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test bench clean

quickstart: .venv/installed
	$(BIN)/opd quickstart

test: .venv/installed
	$(BIN)/python -m pytest tests

bench: .venv/installed
	$(BIN)/python -m benchmarks.support_head
	$(BIN)/python -m benchmarks.cache_layout
	$(BIN)/python -m benchmarks.scorer

# torch goes first and alone: where its CPU build is at hand it is taken, and nothing later replaces it.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
