# Two commands first: `make quickstart` runs the main job, `make test` passes the tests.
# `make test-core` runs the quick tests of ops, layers, injection and adapters, for every commit.
# `make bench` measures speed and memory and writes docs/performance.md (OPTIONS="--quick" to try).
# `make claims` measures what the papers claim and writes docs/claims.md; it goes on where it was.
# `make docs` builds the site into build/site; a warning ends it.
# `make wheel` installs a wheel into an empty environment and uses it outside the repository.
# `make browser` installs Chromium for tests/browser where it can; `make screenshots` takes the pictures
# of the studio in docs/images/studio.
# All set up .venv themselves; nothing is done again while pyproject.toml and constraints.txt
# have not changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
WORKERS ?= 3

.PHONY: quickstart test test-core check bench claims docs wheel browser screenshots setup clean

quickstart: $(READY)
	$(BIN)/lorakit quickstart
	@echo "For the commands above in this shell: source $(BIN)/activate"

# A file stays in one worker, so that what its tests share is made once; tests/conftest.py puts long
# files first. Bytecode is written, because workers and the processes of tests import the same files.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
CORE := $(addprefix tests/unit/,ops layers injection adapters)
CORE += $(addprefix tests/features/test_,skinny_choice.py conv_training.py sibling_passes.py sibling_rounds.py)

test: $(READY) browser
	$(PYTEST)

test-core: $(READY)
	$(PYTEST) -m "not slow" $(CORE)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(MAKE) test

bench: $(READY)
	$(BIN)/python -m benchmarks $(OPTIONS)

claims: $(READY)
	$(BIN)/python -m benchmarks.claims $(OPTIONS)

docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

browser:
	@tools/install_browser.sh

screenshots: $(READY) browser
	$(BIN)/python -m tools.studio_screenshots docs/images/studio

wheel:
	PYTHON=$(PYTHON) tools/check_wheel.sh

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $(DOCS_READY)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
