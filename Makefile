# lab: open the notebooks · test: lint, unit tests, every notebook · train: the paper's run
# reproduce: the runs of a plan
.PHONY: lab test lint unit notebooks-cifar10 notebooks-digits train reproduce notebooks \
        results badges colab clean

# A relative RESNET_LIB_DATA means the same folder for a notebook as for this Makefile.
ifdef RESNET_LIB_DATA
export RESNET_LIB_DATA := $(abspath $(RESNET_LIB_DATA))
endif

PYTHON ?= python3
COLAB_PYTHON ?= python3.13
BIN := .venv/bin
NBVAL := $(BIN)/python -m pytest --nbval-lax --nbval-cell-timeout=300 --no-header \
         -p no:cacheprovider notebooks
ARGS ?=

lab: .venv/ready
	$(BIN)/jupyter lab notebooks $(ARGS)

test: lint unit notebooks-cifar10 notebooks-digits

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

unit: .venv/ready
	$(BIN)/python -m pytest tests

# Every notebook on CIFAR-10 (downloaded to data/ if it is not at hand) …
notebooks-cifar10: .venv/ready
	$(NBVAL)

# … and on the embedded digits: an empty data folder and no address to download from.
notebooks-digits: .venv/ready
	RESNET_LIB_DATA=$$(mktemp -d) RESNET_LIB_CIFAR10_URL=file:///nowhere $(NBVAL)

train: .venv/ready
	$(BIN)/python -m resnet_lib.train $(ARGS)

# What is missing of data/plans/cpu.toml, or of ARGS="data/plans/gpu.toml --jobs 4".
reproduce: .venv/ready
	$(BIN)/python -m resnet_lib.reproduce $(ARGS)

# Execute every notebook in place, top to bottom in a fresh kernel.
notebooks: .venv/ready
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.record_timing=False notebooks/*.ipynb notebooks/*/*.ipynb

# The address in pyproject.toml, carried to every badge, set-up cell and link.
badges: .venv/ready
	$(BIN)/python badges.py

# Every notebook as in Colab: its Python and packages, an empty folder, a fetched project.
colab: .colab/ready
	.colab/bin/python tests/colab.py $(ARGS)

# The README's table and figure, from data/runs.
results: .venv/ready
	$(BIN)/python -m resnet_lib.results

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

# Colab has more packages than these, but none that the notebooks need.
.colab/ready: tests/colab-constraints.txt
	$(COLAB_PYTHON) -m venv .colab
	.colab/bin/python -m pip install --quiet --requirement tests/colab-constraints.txt \
	    scikit-learn tqdm filelock nbclient
	touch $@

clean:
	rm -rf .venv .colab
