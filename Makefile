# make demo   the main job on real data        make test   ruff, mypy, import contracts, the whole test suite
# Both make their own .venv; a second call only runs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint docs site tour pictures picture mutants clean

demo: $(READY)
	$(BIN)/passportize demo

test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=15 tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Links, code on pages and in docstrings, the picture, the project's own files.
docs: export OMP_NUM_THREADS = 1
docs: $(READY)
	$(BIN)/python -m pytest -q tests/docs

# The site, in build/site; look at it with `python3 -m http.server -d build/site`.
site: export NO_MKDOCS_2_WARNING = 1
site: $(READY)
	$(BIN)/python -m mkdocs build --strict

# What docs/tour.ipynb prints and draws.
tour: export OMP_NUM_THREADS = 1
tour: $(READY)
	$(BIN)/python -m tools.run_tour

# The README's pictures: its badges, and what two commands print; two minutes.
pictures: export OMP_NUM_THREADS = 1
pictures: $(READY)
	$(BIN)/python -m tools.badges
	$(BIN)/python -m tools.terminal_picture

# docs/pictures/rooms.svg, drawn from the code; a test says when that is due.
picture: $(READY)
	$(BIN)/python -m tools.draw_rooms

# Small changes of the files that hold formulas, and which of them no test notices; hours, so not in CI.
mutants: $(READY)
	$(BIN)/pip install -q --disable-pip-version-check cosmic-ray==8.7.0
	$(BIN)/python tools/mutation.py $(WORDS)

# torch first and pinned, so that no later requirement pulls another build of it.
$(READY): pyproject.toml setup.cfg requirements-dev.txt tools/torchvision_beside_cpu_torch.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check --no-deps torchvision==0.28.0
	$(BIN)/pip install -q --disable-pip-version-check -r requirements-dev.txt -e '.[test]'
	$(BIN)/python tools/torchvision_beside_cpu_torch.py
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
