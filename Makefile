# lab: open the first notebook · test: lint, unit tests, every notebook · train: the paper's run
# reproduce: the runs of a plan · colab, site-test: the other ways in · browser: the widgets
.PHONY: lab test lint unit records notebooks-cifar10 notebooks-digits train reproduce notebooks \
        results badges colab site site-test browser latency bench widgets7 faults \
        mutants clean

# A relative RESNET_LIB_DATA means the same folder for a notebook as for this Makefile.
# The shell joins the two, since make would cut a path at a space and read a $ in it; the
# library knows what ~ is.
ifneq ($(value RESNET_LIB_DATA),)
override RESNET_LIB_DATA := $(shell \
    path='$(subst ','\'',$(value RESNET_LIB_DATA))'; \
    case "$$path" in (/*|"~"*) ;; (*) path="$$PWD/$$path" ;; esac; \
    printf %s "$$path")
export RESNET_LIB_DATA
endif

PYTHON ?= python3
COLAB_PYTHON ?= python3.13
BIN := .venv/bin
# Two test files or notebooks side by side, each on half of the cores: sooner done than
# one on all.
THREADS = $$($(BIN)/python -c "from resnet_lib.device import cores; print(max(1, cores() // 2))")
PYTEST = OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n 2 --dist loadfile
NBVAL = $(PYTEST) --nbval-lax --nbval-cell-timeout=600 --no-header -p no:cacheprovider \
        notebooks
# Live trainings are cut short: enough that the loss has fallen below that of a guess.
notebooks-cifar10 notebooks-digits colab: export RESNET_LIB_ITERATIONS ?= 30
FAULT_KILLS ?= 30
ARGS ?=

# From here, not from the notebooks' folder, or their links to the README lead nowhere.
lab: .venv/ready
	$(BIN)/jupyter lab --ServerApp.root_dir=. notebooks/01_residual_equation.ipynb $(ARGS)

test: lint unit notebooks-cifar10 notebooks-digits

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

unit: .venv/ready
	$(PYTEST) --no-loadscope-reorder tests

# What the kept weights judge, beside what was recorded: minutes.
records: .venv/ready
	$(PYTEST) -m slow tests/test_house.py

# Every notebook on CIFAR-10 (downloaded to data/ if it is not at hand) …
notebooks-cifar10: .venv/ready
	$(BIN)/python -m resnet_lib.cifar10
	$(NBVAL)

# … and on the embedded digits: an empty data folder and no address to download from.
notebooks-digits: .venv/ready
	RESNET_LIB_DATA=$$(mktemp -d) RESNET_LIB_CIFAR10_URL=file:///nowhere $(NBVAL)

train: .venv/ready
	$(BIN)/python -m resnet_lib.train $(ARGS)

# What is missing of data/plans/cpu.toml, or of ARGS="data/plans/gpu.toml --jobs 4".
reproduce: .venv/ready
	$(BIN)/python -m workshop.reproduce $(ARGS)

# Execute notebooks in place: all, or those named in ARGS.
notebooks: .venv/ready
	$(BIN)/python -m workshop.execute $(ARGS)

# Training killed, starved of disk, fed damaged files, over and over: no work is lost.
# And the public doors, handed anything for four seconds a kill: nothing hangs or lies.
faults: FUZZ_SECONDS ?= $(shell echo $$((4 * $(FAULT_KILLS))))
faults: .venv/ready
	FAULT_KILLS=$(FAULT_KILLS) FUZZ_SECONDS=$(FUZZ_SECONDS) OMP_NUM_THREADS=1 \
	    $(BIN)/python -m pytest -s tests/faults/harness_training.py \
	    tests/faults/fuzz_doors.py

# One small change to the core at a time, and a test has to fail; goes on where it was
# stopped. ARGS="recipe data" tries some modules, ARGS="--changed main" some lines.
mutants: .venv/mutants
	OMP_NUM_THREADS=1 $(BIN)/python -m workshop.mutants $(ARGS)

# The address in pyproject.toml, carried to every badge, set-up cell and link.
badges: .venv/ready
	$(BIN)/python -m workshop.badges

# Every notebook as in Colab: its Python and packages, an empty folder, a fetched project.
colab: .colab/ready
	.colab/bin/python tests/colab.py $(ARGS)

# The web site, from the committed outputs: python -m http.server -d .site/html
site: .site/ready
	$(BIN)/sphinx-build -q -W --keep-going -c workshop/site -d .site/doctrees . .site/html

# Every page in a browser (Chromium, if the system has none: playwright install chromium).
site-test: site
	$(BIN)/python -m pip install --quiet --editable '.[browser,test]'
	$(BIN)/python -m pytest workshop/site

# The README's table from data/runs, and its figure from notebook 05 as last executed.
results: .venv/ready
	$(BIN)/python -m workshop.results

# The explorer used by mouse and keyboard in JupyterLab and Notebook 7, in the system's
# Chromium or in one that is fetched.
browser: .venv/ready
	$(BIN)/python -m pip install --quiet --editable '.[browser,test]'
	command -v chromium || $(BIN)/python -m playwright install --with-deps chromium
	$(BIN)/python -m pytest -s tests/browser/drive_explorer.py $(ARGS)

# How fast the explorer follows its controls, in a browser on this machine.
latency:
	$(MAKE) browser ARGS="-k latency"

# Images per second beside a textbook loop and this machine's limit. ARGS=--write keeps
# data/bench.json and draws data/bench.png; ARGS=--changes tries single changes.
bench: .venv/ready
	$(BIN)/python workshop/benchmarks/throughput.py $(ARGS)

# The widgets' tests with what Colab runs: ipywidgets 7.7.1 and IPython 7.34, in an
# environment of its own that borrows PyTorch and the rest from .venv.
widgets7: .widgets7/ready
	.widgets7/bin/python -m pytest tests/test_explorer.py

.widgets7/ready: .venv/ready
	$(BIN)/python -m venv .widgets7
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
	    > .widgets7/borrowed
	.widgets7/bin/python -m pip install --quiet 'ipywidgets==7.7.1' 'ipython==7.34' \
	    'ipykernel<7' 'setuptools<81' pytest
	.widgets7/bin/python -c "import site; \
	    open(site.getsitepackages()[0] + '/borrowed.pth', 'w').write( \
	    open('.widgets7/borrowed').read())"
	touch $@

# An environment keeps its first Python, so one that is too old is refused before.
.venv/ready: pyproject.toml
	@$(PYTHON) -c "import sys; sys.version_info < (3, 11) and sys.exit( \
	    'This needs Python 3.11 or later. Name one, as in: make lab PYTHON=python3.13')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

.venv/mutants: .venv/ready
	$(BIN)/python -m pip install --quiet --editable '.[mutants,test]'
	touch $@

# Colab has more packages than these, but none that the notebooks need.
.colab/ready: tests/colab-constraints.txt
	$(COLAB_PYTHON) -m venv .colab
	.colab/bin/python -m pip install --quiet --requirement tests/colab-constraints.txt \
	    scikit-learn tqdm filelock anywidget nbclient
	touch $@

# Scripts that the pages load: mathematics, widgets without a kernel, and the engine of
# the explorer's page.
.site/ready: .venv/ready
	$(BIN)/python -m pip install --quiet --editable '.[site]'
	mkdir -p .site/static
	mkdir -p .site/engine
	cd .site && npm pack --silent mathjax@3.2.2 @jupyter-widgets/html-manager@1.0.15 \
	    onnxruntime-web@1.30.0
	tar -xzf .site/onnxruntime-web-*.tgz -C .site/engine --strip-components=2 \
	    package/dist/ort.wasm.bundle.min.mjs \
	    package/dist/ort-wasm-simd-threaded.wasm
	tar -xzf .site/mathjax-*.tgz -C .site/static --strip-components=2 package/es5/tex-svg.js
	tar -xzf .site/jupyter-widgets-*.tgz -C .site/static --strip-components=2 \
	    --exclude '*.map' --exclude '*-amd.js*' package/dist
	touch $@

clean:
	rm -rf .venv .colab .site .widgets7 .mutants
