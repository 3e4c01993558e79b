# Every target does its own set-up: Python 3.11 or newer and make are all it takes.
#   make demo    a legacy system becomes one verified tape, and then again while it never stops; two minutes
#   make test    every test; what a machine lacks is skipped by name
#   make check   ruff, mypy --strict, the layers
#   make bench   the benchmarks, beside their peers (QUICK=1 for a smoke run)
#   make pictures  the pictures of docs/reading_history.md, drawn anew
#   make demo-web  a whole system on replayed ticks: sources, services and the page, until Ctrl-C
#   make screenshots  the pictures of the web page, taken anew by its tests
#   make apt     Debian's redis-server and chromium, so that the tests run against them too (needs root)

PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SAMPLES := $(abspath $(CURDIR)/../shared/data)
ifneq ($(wildcard $(SAMPLES)/MANIFEST.csv),)
export ONETAPE_SAMPLE_DATA ?= $(SAMPLES)
endif
JOBS ?= auto
TESTS ?= tests

.PHONY: help setup demo demo-web screenshots test check bench pictures apt clean
help:
	@sed -n '2,10p' Makefile | cut -c3-

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "onetape needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.python requirements/build.txt requirements/runtime.txt requirements/demo.txt pyproject.toml compat/pyproject.toml
	$(PIP) install -r requirements/build.txt
	$(PIP) install -r requirements/demo.txt
	$(PIP) install --no-build-isolation --no-deps -e . -e ./compat
	@touch $@

$(VENV)/.tests: $(VENV)/.installed requirements/test.txt
	$(PIP) install -r requirements/test.txt
	@touch $@

setup: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/onetape demo $(DEMO)
	$(BIN)/onetape demo --migrate
	@echo "To see a whole system live, with its web page: make demo-web"

demo-web: $(VENV)/.installed
	$(BIN)/onetape demo --web $(DEMO)

screenshots: $(VENV)/.tests
	ONETAPE_PICTURES=1 $(BIN)/python -m pytest tests/browser

test: $(VENV)/.tests
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

check: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The peers have a virtual environment of their own: they need other versions of what we use. Where it cannot be made
# the benchmark runs without them, and says so.
$(PEERS)/.installed: requirements/peers.txt | $(VENV)/.python
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check -q install -r requirements/peers.txt
	@touch $@

bench: $(VENV)/.tests
	-@$(MAKE) --no-print-directory $(PEERS)/.installed
	ONETAPE_BENCH_PEERS=$(abspath $(PEERS))/bin/python $(BIN)/python -m bench $(if $(QUICK),--quick) $(BENCH)

pictures: $(VENV)/.tests
	$(BIN)/python docs/pictures/draw.py

apt:
	apt-get update -qq
	apt-get install -y -qq redis-server chromium

clean:
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
