# make run   a first answer from nothing: environment, install, default model, one question
# make test  the same environment with the test tools, then the tests

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.PHONY: run test lint clean

run: $(VENV)/.installed
	@$(BIN)/hearth run smollm2 "What is the capital of France?" --temperature 0 < /dev/null

test: $(VENV)/.installed-test
	@$(BIN)/hearth pull smollm2
	HEARTH_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(VENV)/.installed-test
	$(BIN)/ruff check src tests bench

# torch comes first and alone, so that nothing else chooses its build.
$(VENV)/.installed: pyproject.toml $(wildcard native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is older than Python 3.11"; \
		echo "hint: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

clean:
	rm -rf $(VENV)
