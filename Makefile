# Each target works on a fresh machine: it makes .venv with $(PYTHON) (3.11 or newer) and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check

demo: .venv/installed-demo  ## caption real photographs with the shipped weights, offline
	$(BIN)/python scripts/demo_photos.py build/demo
	HF_HUB_OFFLINE=1 $(BIN)/captioner caption build/demo/photos/* --heatmap build/demo/heatmap.html
	HF_HUB_OFFLINE=1 $(BIN)/captioner caption build/demo/photos/* --heatmap build/demo/heatmap.png >/dev/null

test: .venv/installed-dev  ## run all tests
	$(BIN)/python -m pytest $(ARGS)

check: .venv/installed-dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
