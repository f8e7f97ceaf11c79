# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
SWEEP ?= ablate_window

.PHONY: demo ablate test test-slow test-weekly lint bench docs clean

demo: $(VENV)/.run
	$(BIN)/python train.py --config=configs/tiny.py --workdir=$(RUN)
	$(BIN)/python eval.py --config=configs/tiny.py --workdir=$(RUN)
	$(BIN)/python -m hybrid.generate --workdir=$(RUN) --prompt="$$SAMPLE" --max_new_tokens=160 \
		--temperature=0.6 --top_p=0.9

define SAMPLE
class Example:
    def close(self):
endef
export SAMPLE

ablate: $(VENV)/.run
	$(BIN)/python -m hybrid.ablate --config=configs/$(SWEEP).py --workdir=runs/$(SWEEP)

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow and not weekly" -n 2 --dist loadfile -q

test-slow: $(VENV)/.slow
	$(BIN)/python -m pytest -m "slow and not weekly" -q

test-weekly: $(VENV)/.slow
	$(BIN)/python -m pytest -m weekly -q

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy hybrid

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run

docs: $(VENV)/.run
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) runs build *.egg-info

# One environment; each stamp adds an extra to it.
$(VENV)/.run: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/pip install -q -e ".[test]"
	touch $@

$(VENV)/.slow: $(VENV)/.test
	$(BIN)/pip install -q -e ".[slow]"
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

$(VENV)/.bench: $(VENV)/.run
	$(BIN)/pip install -q -e ".[bench]"
	touch $@
