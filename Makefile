# make demo: watch a network being trained and read from its weights.   make test: the test suite.   make lint: ruff and pyright.
# Each first sets up .venv with the versions in constraints.txt. All that is needed is python3.11; pyright runs where there is node.

PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/weight-oracle demo $(if $(SEED),--seed $(SEED))

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: $(READY)
	$(BIN)/ruff check
	if command -v node >/dev/null; then $(BIN)/pyright; else echo "pyright is left out: it needs node"; fi

clean:
	rm -rf .venv demo build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info

# torch comes first, on its own: it is most of the download.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
