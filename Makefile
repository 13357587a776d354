# make demo    the main job, end to end, on an embedded default
# make study   the runs of docs/results.md: hours on two cores
# make test    all tests (and what they need)
# make gpu     all checks and measurements that need a GPU: eight minutes, into runs/benchmarks/gpu
# make soak    the long trial of reliability, into docs/reliability.md: an hour, or SOAK_MINUTES=3
# make site    the pages of docs/ as a site, into site/
# make lint    ruff and mypy
# make clean   removes the environment, caches and build outputs (runs/ stays)
#
# PYTHON=...       the interpreter that makes .venv (3.11)
# PIP_OPTIONS=...  for pip, for example an index that offers a CPU build of torch
# DEMO_OPTIONS=... for `minimoe-dist demo`, for example --steps 50
# STUDY_OPTIONS=... for benchmarks/study.py, for example "--steps 20 --text FOLDER"
# SOAK_OPTIONS=... for benchmarks/soak, for example "--seed 5 --only kills inputs"

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_OPTIONS ?=
DEMO_OPTIONS ?=
STUDY_OPTIONS ?=
SOAK_MINUTES ?= 60
SOAK_OPTIONS ?=
TEST_OPTIONS ?=
# Some of the tests wait, for Slurm or for what has ended: more than the two cores they are made for.
TEST_WORKERS ?= 3
BIN := .venv/bin
STAMP := .venv/.installed
DEBIAN_PACKAGES := slurm-wlm munge chromium

.PHONY: demo study test gpu soak site lint clean install debian-packages transformers-tests
.DELETE_ON_ERROR:

install: $(STAMP)

# One resolution with exact pins: torch without its pin would bring several GB of CUDA packages.
$(STAMP): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { \
	  echo "minimoe-dist needs Python 3.11, not '$(PYTHON)': apt-get install python3.11," \
	       "or give PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: apt-get install python3.11-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) \
	  -c constraints.txt -e '.[demo,test]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m minimoe_dist demo $(DEMO_OPTIONS)

study: $(STAMP)
	@$(BIN)/python benchmarks/study.py $(STUDY_OPTIONS)

# Tests of Slurm, and of pages in a browser, skip themselves where these are missing, so failing to
# install them is no failure.
debian-packages:
	@if command -v sbatch >/dev/null && command -v munged >/dev/null \
	    && command -v chromium >/dev/null; then :; \
	elif [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "tests of what is missing of $(DEBIAN_PACKAGES) will be skipped: install it as root"; \
	elif log=$$( { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	    -o DPkg::Lock::Timeout=120 \
	    --no-install-recommends $(DEBIAN_PACKAGES); } </dev/null 2>&1 ); then \
	  echo "installed $(DEBIAN_PACKAGES)"; \
	else \
	  echo "tests of what is missing of $(DEBIAN_PACKAGES) will be skipped: apt-get could not" \
	       "install it: $$(tail -n 1 <<<"$$log")"; \
	fi

# transformers' own tests of models, of the version that is installed: they run on the students'
# classes, and skip themselves where the source archive cannot be had.
transformers-tests: $(STAMP)
	@version=$$($(BIN)/python -c 'from importlib.metadata import version as v; print(v("transformers"))'); \
	folder=.venv/share/transformers; \
	if [ -d $$folder/$$version/tests ]; then :; \
	elif log=$$( { mkdir -p $$folder && cd $$folder && ../../bin/python -m pip download --quiet \
	    --disable-pip-version-check $(PIP_OPTIONS) --no-deps --no-binary :all: -d . \
	    transformers==$$version && tar xzf transformers-$$version.tar.gz \
	    transformers-$$version/tests && rm -rf $$version && mv transformers-$$version $$version; \
	    } </dev/null 2>&1 ); then \
	  echo "fetched the tests of transformers $$version"; \
	else \
	  echo "transformers' own tests of models will be skipped: $$(tail -n 1 <<<"$$log")"; \
	fi

test: $(STAMP) debian-packages transformers-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" -n $(TEST_WORKERS) --dist loadfile \
	  --no-loadscope-reorder $(TEST_OPTIONS)

gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu_report.py

soak: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak --minutes $(SOAK_MINUTES) $(SOAK_OPTIONS)

site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site/index.html"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv site .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
