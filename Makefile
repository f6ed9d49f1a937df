# Two commands matter: `make demo` and `make test`. Both set up their own environment first, from nothing.
# A CPU build of torch where pip would choose another:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
JOBS ?= 2
DEMO ?= out/demo
CUDA_VENV ?= .cuda-env
CUDA_TORCH ?= 2.13.0
BIN := $(VENV)/bin

.PHONY: demo test lint types pytest slow avx2 gpu-check site readme kills fuzz soak mutants clean
.DEFAULT_GOAL := demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"mccompile needs Python 3.11 to 3.13; {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# The stamps remember which pyproject.toml an environment was installed from. Python compiles what it imports by itself;
# pip would compile all modules of all packages, which takes longer than the rest of the installation.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS) --editable .
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS) --editable '.[test,docs]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo  ## one video three ways (vanilla, exact, motioncache), the table that compares them, and a report
	$(BIN)/mccompile generate --policy motioncache --set threshold=0.3 --dtype auto --compare --out $(DEMO) --record $(DEMO)/record

test: $(VENV)/.test  ## everything that CI checks; ends with pytest's summary
	@$(MAKE) --no-print-directory --jobs $(JOBS) lint types site
	@$(MAKE) --no-print-directory avx2
	@$(MAKE) --no-print-directory pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/mypy

pytest: $(VENV)/.test  # one worker more than cores: many tests wait for processes of their own
	$(BIN)/python -m pytest --numprocesses $$(($(JOBS) + 1)) --dist worksteal

slow: $(VENV)/.test  ## the long tests, whose kinds the others cover
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -m slow

avx2: $(VENV)/.test  ## attention, the ladder and replays as on a CPU without AVX-512
	ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal tests/backend/test_native.py \
	  tests/lowering/test_attention.py tests/studio/test_bench_steps.py tests/generate/test_replay.py

# PyPI's torch is the CUDA build; `===` keeps other builds of the same version away. The environment takes 5.5 GB.
$(CUDA_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install --quiet --editable '.[cuda]' 'torch===$(CUDA_TORCH)'
	@touch $@

gpu-check: $(CUDA_VENV)/.ready  ## compiles for sm_90 and sm_89 without a GPU: kernels counted, no spills, no copies
	$(CUDA_VENV)/bin/python -m tests.device.cross --out docs/benchmarks/gpu_check.json

site: $(VENV)/.test  ## the documentation as a web site in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

readme: $(VENV)/.test  ## rewrites the measured tables of README.md and docs/ from docs/benchmarks/*.json
	$(BIN)/python -m tests.house.readme

kills: $(VENV)/.test  ## kills fifty runs with SIGKILL at random points and resumes them; each video must be the same
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.generate.kills 50

fuzz: $(VENV)/.test  ## changes every kind of file that is read, a minute each (led by atheris: pip install '.[fuzz]')
	$(BIN)/python -m tests.readers.fuzz 60

soak: $(VENV)/.test  ## a thousand generations in one process: what is held does not grow
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.house.soak 1000

mutants: $(VENV)/.test  ## small wrong changes of four rooms, each seen by a test or explained; goes on where it stopped
	$(BIN)/python -m tests.mutation reach
	for room in arithmetic policy lowering runtime; do \
	  $(BIN)/python -m tests.mutation run $$room --seconds 3600 || exit 1; \
	done
	$(BIN)/python -m tests.mutation report

clean:
	rm -rf out site .pytest_cache .mypy_cache .ruff_cache .hypothesis
