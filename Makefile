# The two commands are `make demo` and `make test`; each does its own set-up on a fresh machine.

PYTHON ?= python3
BIN := .venv/bin
NOT_DEFAULT := slow or interpret or compile or gpu

.PHONY: demo test check bench setup model clean soak
.DELETE_ON_ERROR:

demo: model
	$(BIN)/python examples/quickstart.py

# Tests on tiny models run in parallel, one thread each; those on the real model run one at a time, with all cores.
test: model
	$(BIN)/python -m pytest -n 2 -m "not model and not ($(NOT_DEFAULT))"
	$(BIN)/python -m pytest -m "model and not ($(NOT_DEFAULT))"

# Random programs for ten minutes, then the property tests of tree and scheduler with hundreds of thousands of steps.
soak: setup
	$(BIN)/python tests/support/soak.py --seconds 600
	ASGL_SOAK=15 $(BIN)/python -m pytest -n 2 --timeout 1800 tests/scheduling/test_scheduler.py tests/scheduling/test_radix_cache.py

check: setup
	$(BIN)/ruff check src tests examples bench
	$(BIN)/basedpyright
	$(BIN)/lint-imports

setup: .venv/.installed

model: setup
	@$(BIN)/asgl pull smollm2-135m

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the dependencies (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache
