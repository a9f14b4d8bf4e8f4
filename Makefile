# The two commands are `make demo` and `make test`; each does its own set-up on a fresh machine.

PYTHON ?= python3
BIN := .venv/bin
NOT_DEFAULT := slow or interpret or compile or gpu

.PHONY: demo test check docs bench bench-quick peers setup model clean soak test-models test-interpret test-compile gpu
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
	$(BIN)/python tests/support/fuzz_grammars.py --seconds 600
	ASGL_SOAK=15 $(BIN)/python -m pytest -n 2 --timeout 1800 tests/execution/test_json_schema.py

# Real files, which are fetched first (1 GB): models and vocabularies of several makers. Some ten minutes on two cores.
test-models: setup
	$(BIN)/python tests/support/fetched.py
	ASGL_LANE=models $(BIN)/python -m pytest --timeout 600 tests/real_files

# The Triton kernels without a GPU: their numbers in Triton's interpreter, and what they compile to. Each in a process of its own.
test-interpret: setup
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --timeout 300 \
		tests/kernels/test_contract.py tests/kernels/triton tests/execution/cuda_graphs

test-compile: setup
	ASGL_LANE=compile OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/kernels/triton_compile

# On a machine with a GPU, torch >= 2.11 for it and triton >= 3.6: tests on the device, then measurements to docs/gpu-measured.md.
# Triton builds its launcher with a C compiler and Python's headers: better to hear of it first. PYTHON may be that of a virtual
# environment, whose packages another environment sees by a .pth file only.
gpu:
	@command -v "$${CC:-gcc}" >/dev/null || command -v clang >/dev/null || \
		{ echo "Triton needs a C compiler, and there is no gcc and no clang: install one, or name one in CC" >&2; exit 1; }
	@$(PYTHON) -c "import sys; from importlib.util import find_spec as f; f('torch') or sys.exit(sys.executable + ' has no torch: name a ' \
		'Python that has torch >= 2.11 for this GPU, as in: make gpu PYTHON=/path/to/python')"
	@$(PYTHON) -c "import sys, torch; torch.cuda.is_available() or sys.exit('torch ' + torch.__version__ + ' sees no GPU')"
	test -x .venv-gpu/bin/python || $(PYTHON) -m venv --system-site-packages .venv-gpu
	@$(PYTHON) -c "import sysconfig; print(*{sysconfig.get_path(kind) for kind in ('purelib', 'platlib')}, sep='\n')" \
		>"$$(echo .venv-gpu/lib/python3*/site-packages)/packages-of-python.pth"
	.venv-gpu/bin/python -c "import os, sysconfig; h = os.path.join(sysconfig.get_path('include'), 'Python.h'); \
		assert os.path.exists(h), 'Triton needs ' + h + ': install the headers of this Python (python3-dev, python3-devel)'"
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check -e '.[gpu]' pytest pytest-asyncio pytest-timeout pytest-xdist
	ASGL_TEST_GPU=cuda .venv-gpu/bin/python -m pytest -o filterwarnings=default --timeout 600 tests/kernels/test_contract.py tests/gpu
	.venv-gpu/bin/python bench/gpu.py

# Everything the paper measured, against all peers: `make peers` first. Wants a quiet machine.
bench: model
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt matplotlib
	$(BIN)/python -m bench run --engine asgl --engine peers --rounds 2 --kind race
	$(BIN)/python -m bench run --engine ablations --rounds 1 --scale 0.5 --limit 15 --kind ablations
	$(BIN)/python -m bench run --engine asgl --engine peers --rounds 1 --kind growth \
		--workload few-shot-mcq --workload multi-document --concurrency 1 4 16
	$(BIN)/python -m bench.decode --engine asgl --engine peers --rounds 3
	$(BIN)/python -m bench profile
	$(BIN)/python -m bench report

# asgl and its ablations alone, on five workloads and a tenth of their programs: some two minutes and a half on two quiet cores.
bench-quick: model
	$(BIN)/python -m bench run --engine ablations --rounds 1 --scale 0.1 --limit 7 --seconds 100 --kind ablations --name quick \
		--workload few-shot-mcq --workload few-shot-gsm8k --workload judge --workload generative-agents --workload tree-of-thought

# The engines that asgl is raced against, each in an environment of its own under the cache directory. Resumable; takes gigabytes.
peers: setup
	$(BIN)/python -m bench.peers.install
	$(BIN)/python -m bench.peers.check

check: setup
	$(BIN)/ruff check src tests examples bench
	$(BIN)/ruff format --check --quiet src tests examples bench
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# The pages of docs/, with the reference from docstrings, to site/index.html. A name or link that leads nowhere is an error.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/zensical build --clean --strict

setup: .venv/.installed

model: setup
	@$(BIN)/asgl pull smollm2-135m

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the dependencies (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv site .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
