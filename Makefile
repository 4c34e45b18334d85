# Two commands on a fresh machine, each making its own environment in .venv: `make demo` and `make test`.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# the first Python that is new enough; `make PYTHON=/path/to/python3.12 test` chooses another
PYTHON ?= $(firstword $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p; done) python3)

.PHONY: help demo test lint types clean

help:
	@echo "make demo    draw data, train, segment, report: demo/report.html, a few minutes on two cores"
	@echo "make test    lint, types and tests"
	@echo "make lint    ruff and pyright only"
	@echo "make clean   remove the environment, caches and demo/"

# rebuilt when the dependencies change, and only then
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) here: install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "SteadySAM needs \
	Python 3.11 or newer, and $(PYTHON) is %d.%d; try `make PYTHON=python3.12 ...`" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (torch is large: some minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)
	@$(BIN)/steadysam demo -o demo

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

# pytest comes last, so that its closing line is the last that is printed
test: lint
	@$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache .hypothesis build dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
