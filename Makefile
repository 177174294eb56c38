# Every target works on a fresh machine: it makes .venv with $(PYTHON), 3.11 or newer, and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
PHOTOS := build/demo/photos

.PHONY: demo test check docs dist sbom

# Caption real photographs with the shipped weights, without the network.
demo: .venv/installed-demo
	@$(BIN)/python scripts/demo_photos.py $(PHOTOS)
	@HF_HUB_OFFLINE=1 $(BIN)/captioner caption $(PHOTOS)/* \
		--heatmap build/demo/heatmap.html --heatmap build/demo/heatmap.png

# Run all tests; make test ARGS='-m "not slow"' for some.
test: .venv/installed-dev
	$(BIN)/python -m pytest $(ARGS)

# Lint, format and types.
check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy captioner $(wildcard service/*.py)

# The documentation site, into site/.
docs: .venv/installed-docs
	HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# A source archive and a wheel, into dist/.
dist: .venv/installed-release
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# What runs with it, for scanners: build/sbom.json, CycloneDX.
sbom: .venv/installed-release
	mkdir -p build
	$(BIN)/python scripts/constraints.py --runtime | $(BIN)/cyclonedx-py requirements - \
		--pyproject pyproject.toml --output-reproducible --output-file build/sbom.json

.venv/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
