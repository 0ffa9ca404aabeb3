# make demo    everything from nothing: packages, photos if there are none, the notebook executed, pictures in predictions/
# make test    everything that the tests need, and the tests
# On Windows, or without make, README.md has the same steps as plain commands.

PYTHON ?= python3
BIN = .venv/bin

demo: .venv/demo-ready
	$(BIN)/jupyter nbconvert --to html --execute --HTMLExporter.preprocessors=nbconvert.preprocessors.CoalesceStreamsPreprocessor --CoalesceStreamsPreprocessor.enabled=True CarvanaUNET.ipynb --output-dir predictions
	@echo "Look at predictions/: pictures, and the executed notebook as CarvanaUNET.html"

test: .venv/test-ready
	$(BIN)/python -m pytest

.venv/demo-ready: requirements.txt requirements-studio.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -r requirements.txt -r requirements-studio.txt
	touch $@

.venv/test-ready: .venv/demo-ready requirements-dev.txt requirements-app.txt requirements-export.txt requirements-memory.txt
	$(BIN)/pip install -q -c constraints.txt -r requirements-dev.txt
	touch $@

.PHONY: demo test
