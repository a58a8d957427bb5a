# Everything runs in .venv, which is made on first use and brought up to date when the requirements change.
PYTHON ?= python3
ARGS ?=
RUN := .venv/bin/python
# As many workers as cores, four at most: each loads torch and needs about a gigabyte.
WORKERS := -n auto --maxprocesses 4 --dist worksteal
TEST_ENV := OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

# Those that need no data of their own; benchmarks/methods.py says where to get its text.
BENCHMARKS := startup quickstart teacher_cache batches conformance performance

.PHONY: help quickstart test test-floors lint format bench clean

help:
	@echo "make quickstart   set up .venv, then distil a small model from the shipped teacher (ARGS=\"--steps 100\" and so on)"
	@echo "make test         set up .venv, then run every test (ARGS=\"-k wizard\" and so on)"
	@echo "make test-floors  run the fast tests on the lowest versions that pyproject.toml allows"
	@echo "make lint         check style and format"
	@echo "make format       mend style and format"
	@echo "make bench        run the benchmarks that need no data of their own"
	@echo "make clean        remove what the other commands made, outputs/ excepted"
	@echo "PYTHON=python3.12 make ... chooses the Python that .venv is made with; 3.11 or newer."

quickstart: .venv/users
	$(RUN) finetune_cli.py quickstart $(ARGS)

test: .venv/developers
	$(TEST_ENV) $(RUN) -m pytest $(WORKERS) $(ARGS)

test-floors: .venv-floors/floors
	$(TEST_ENV) .venv-floors/bin/python -m pytest -m "not slow" $(WORKERS) $(ARGS)

lint: .venv/developers
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: .venv/developers
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: .venv/developers
	@set -e; for name in $(BENCHMARKS); do echo "== benchmarks/$$name.py"; $(RUN) benchmarks/$$name.py $(ARGS); done

clean:
	rm -rf .venv .venv-floors build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# $(call install,FOLDER,REQUIREMENTS): makes the environment where there is none (or half of one) and fills it.
define install
@command -v $(PYTHON) >/dev/null || { echo "No '$(PYTHON)' here. Install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3"; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "LLM Finetuner needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V). Name another: make PYTHON=python3.12"; exit 1; }
@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
	echo "Making the virtual environment $(1)/ with $$($(PYTHON) -V)"; $(PYTHON) -m venv --clear $(1); }
@echo "Installing $(2) into $(1)/ (minutes the first time)"
@$(1)/bin/python -m pip install --disable-pip-version-check -r $(2)
@touch $@
endef

# A file named after its requirements stands in the environment when they are installed.
.venv/users: requirements.txt
	$(call install,.venv,requirements.txt)

.venv/developers: requirements.txt requirements-dev.txt
	$(call install,.venv,requirements-dev.txt)
	@touch .venv/users

.venv-floors/floors: requirements-floors.txt
	$(call install,.venv-floors,requirements-floors.txt)
