# Every target works on a fresh machine: it makes .venv with $(PYTHON), 3.11 or newer, and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
PHOTOS := build/demo/photos

.PHONY: demo test check

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

.venv/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
