# Dense Feature Workbench. The two commands to know: `make demo` and `make test`; each sets everything up first.

# The first Python on the PATH that is new enough; `make demo PYTHON=/path/to/python` names another.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13,\
	$(shell $(name) -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $(name))) python3)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := workbench training apps tests benchmarks demo.py hubconf.py
JOBS ?= 2
RUN ?= runs/demo
# `make pipeline`: three runs, PIPELINE-1-pretrain and so on, of so many steps each.
PIPELINE ?= runs/pipeline
STEPS ?= 60
# `make lab`: a chain a seed; LAB_LIBRARY=PATH of a cut-out pack (docs/data.md), without it the built-in scenes.
LAB ?= runs/lab
LAB_LIBRARY ?=
SEEDS ?= 0

# Benchmarks that read finished trainings, and what they share: not part of `make bench`.
NEED_RUNS = $(patsubst %,benchmarks/%.py,cpu_% lab% objectives ingredients% natural% alternatives backbone diseases finished_runs onset onset_streams)

.DEFAULT_GOAL := help
.PHONY: help setup demo pipeline lab test lint format types imports unit browser bench constraints clean

help:
	@echo "make demo    set up, train on built-in scenes and open the page that shows it (Ctrl-C saves; again = resume)"
	@echo "make pipeline   pretrain, anchor, adapt on built-in scenes, $(STEPS) steps each (again = resume; STEPS=400 for more)"
	@echo "make lab     an induced dense degradation and its cure, with controls: 10 minutes on 2 cores (again = resume)"
	@echo "make test    set up, then style, types, import rules and all tests"
	@echo "make setup   only make the environment in $(VENV)/"
	@echo "make lint | format | types | imports | unit | browser   one part of make test, or its repair"
	@echo "make bench   the measurements in benchmarks/"
	@echo "make clean   remove caches (not $(VENV)/, not runs/)"

setup: $(STAMP)

# Exact versions come from constraints.txt; the stamp makes a second call instant until either file changes.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "make setup: needs Python 3.11 or newer, and" \
		"'$(PYTHON)' is $$($(PYTHON) -V 2>&1 || echo missing)." \
		"Install one and name it: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.11"; exit 1; }
	@$(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null && $(BIN)/python -m pip --version >/dev/null 2>&1 \
		|| $(PYTHON) -m venv --clear $(VENV) || { echo "make setup: $(PYTHON) cannot make a virtual environment." \
		"On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV)/ (about 7 GB with PyTorch's GPU libraries; minutes, once) …"
	@start=$$(date +%s); if [ -t 1 ]; then quiet=; else quiet=-qq; fi; \
	$(BIN)/python -m pip install --disable-pip-version-check $$quiet --log $(VENV)/pip.log -c constraints.txt -e '.[dev]' \
		|| { tail -n 25 $(VENV)/pip.log; echo "make setup: pip failed, see above and $(VENV)/pip.log." \
		"Nothing else was changed; run it again to go on."; exit 1; }; \
	echo "Installed in $$(( $$(date +%s) - start )) s."
	@touch $@

demo: setup
	@$(BIN)/python demo.py --run $(RUN)

# Each run is forked from the last step of the one before; a finished one answers at once, a stopped one goes on.
pipeline: setup
	@$(BIN)/python -m training pretrain cpu_demo --run $(PIPELINE)-1-pretrain --loop.steps $(STEPS) --loop.probe-every 20
	@$(BIN)/python -m training anchor cpu_anchor --run $(PIPELINE)-2-anchor --loop.steps $(STEPS) \
		--start.fork run:$(PIPELINE)-1-pretrain@step=$(STEPS)
	@$(BIN)/python -m training adapt cpu_adapt --run $(PIPELINE)-3-adapt --loop.steps $(STEPS) \
		--start.fork run:$(PIPELINE)-2-anchor@step=$(STEPS)
	@echo "Watch all three: $(BIN)/python -m apps --runs $(patsubst %/,%,$(dir $(PIPELINE))) --open"

lab: setup
	@$(BIN)/python benchmarks/lab.py $(LAB) --seeds $(SEEDS) $(if $(LAB_LIBRARY),--library "$(LAB_LIBRARY)")
	@echo "Watch all runs: $(BIN)/python -m apps --runs $(LAB) --open"

# Every Python process of the tests runs behind the guard of tests/offline/; a line in its log fails the whole.
test: setup
	@start=$$(date +%s); log=$$(mktemp); trap 'rm -f "$$log"' EXIT; passed=true; \
	PYTHONPATH="$(CURDIR)/tests/offline$${PYTHONPATH:+:$$PYTHONPATH}" DFW_OFFLINE_LOG="$$log" \
		$(MAKE) --no-print-directory lint types imports unit browser || passed=false; \
	if [ -s "$$log" ]; then cat "$$log"; passed=false; \
		echo "make test: something tried to reach another machine, see the lines above."; fi; \
	$$passed || exit 1; \
	echo "make test: everything passed in $$(( $$(date +%s) - start )) s, set-up apart."

lint: setup
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/ruff format --check $(wildcard $(SOURCES))

format: setup
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	$(BIN)/ruff format $(wildcard $(SOURCES))

# pyright's launcher would ask a package index for its newest version, to warn when it is not installed.
types: setup
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

imports: setup
	$(BIN)/lint-imports --no-cache

# Two processes for what only computes; the browser tests measure times, so they run alone and last.
unit: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not browser"

browser: setup
	$(BIN)/python -m pytest -m browser

bench: setup
	@for script in $(filter-out $(NEED_RUNS),$(wildcard benchmarks/*.py)); do \
		echo "== $$script"; $(BIN)/python $$script || exit 1; done
	@echo "Other benchmarks need finished trainings: see their headers. make lab is apart."

constraints: setup
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --all --exclude pip --exclude-editable; } > constraints.new
	@mv constraints.new constraints.txt && touch $(STAMP)

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist out
	find $(wildcard $(SOURCES)) -name __pycache__ -type d -prune -exec rm -rf {} +
