# All commands for a checkout. `make` alone lists them.
PYTHON ?= python3
AIRFLOW := .venvs/airflow/bin/python
JOBS := .venvs/jobs/bin/python
SETUP = @$(PYTHON) scripts/setup.py
COMPOSE = @$(PYTHON) scripts/compose.py
export IMAGES PHOTO KEY

.DEFAULT_GOAL := help
.PHONY: help setup setup-tensorflow setup-dev run ui put airflow stop up down logs password backup restore test test-fast test-slow test-compose chaos bench bench-quick bench-growth lint audit format package lock clean distclean

help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup:  ## Make this machine ready; quick when nothing is to do (PYTHON=python3.12 to choose one)
	$(SETUP)

setup-tensorflow:  ## What `make setup` does, and TensorFlow, for other backbones than the default one (0.3 GB)
	$(SETUP) --tensorflow

setup-dev:  ## The same, and the tools for tests and lint
	$(SETUP) --dev

run: setup  ## Photos to published tables on this machine (IMAGES=folder for your own photos)
	@$(AIRFLOW) -m local run $(if $(IMAGES),--images "$$IMAGES")

ui: setup  ## The same stack with Airflow's UI, in the background
	@$(AIRFLOW) -m local ui

put:  ## One photo into the bucket, while `make ui` runs (PHOTO=kiwi.jpg KEY=Training/Kiwi/1.jpg)
	@$(AIRFLOW) -m local put "$$PHOTO" "$$KEY"

airflow:  ## Airflow's own command line, while `make ui` runs (ARGS="backfill create --help")
	@$(AIRFLOW) -m local airflow $(ARGS)

stop:  ## Stop what `make ui` started, and the S3 server
	@if [ -x $(AIRFLOW) ]; then $(AIRFLOW) -m local stop; fi

up:  ## The production shape, in containers: docker-compose.yaml (IMAGES=folder: uploads its photos)
	$(COMPOSE) up $(if $(IMAGES),--images "$$IMAGES")

down:  ## Stop what `make up` started; all data stays
	$(COMPOSE) down

logs:  ## Follow the containers' logs (ARGS=scheduler for one of them)
	@docker compose logs --follow --tail 100 $(ARGS)

password:  ## The password of `make up`'s Airflow
	$(COMPOSE) password

backup:  ## Dump the databases of `make up` into a new folder of backups/
	$(COMPOSE) backup

restore:  ## Put the databases back (BACKUP=backups/20261125T120000)
	$(COMPOSE) restore "$(BACKUP)"

# The files of tests on WORKERS processes of each environment, in a random order whose seed pytest prints
# (ARGS="--randomly-seed=1" repeats it). Compiled tests are kept, or each process would compile all of them anew.
WORKERS ?= 2
RUN_TESTS = @$(JOBS) -m tests --workers $(WORKERS) $(PARTED) $(if $(COVERAGE),--coverage)
PARTED = $(if $(PART),--part $(PART))
FAST = not server and not jvm and not heavy and not slow and not compose
test test-fast test-slow: export PYTHONDONTWRITEBYTECODE =

test: setup-dev  ## All tests but the slow and the containers' (ARGS="-k moments" for some, COVERAGE=1 to measure it)
	@rm -rf build/coverage && mkdir -p build/coverage
	$(RUN_TESTS) --marks "not slow and not compose" $(ARGS)
	$(if $(COVERAGE),@$(JOBS) -m coverage combine --quiet build/coverage/jobs build/coverage/airflow && $(JOBS) -m coverage report)

test-fast: setup-dev  ## Units and properties, in two minutes: no server, no JVM, no other program
	$(RUN_TESTS) --airflow-workers 1 --hypothesis-profile quick --marks "$(FAST)" $(ARGS)

test-slow: setup-dev  ## What is too slow for each change (PART=1/4: the first of four parts)
	$(RUN_TESTS) --marks "slow and not compose" $(ARGS)

# The containers' tests are steps of one deployment's life: in their order, on one process.
test-compose: setup-dev  ## What docker-compose.yaml promises, in containers: 20 min (PART=1/4: a quarter of the slow)
	@$(AIRFLOW) -m pytest -m compose -p no:randomly -s tests/docker $(PARTED) $(ARGS)

# A failure prints the shortest history that breaks a promise, and the command that repeats its seed.
chaos: setup-dev  ## Histories under faults and damaged photos (HISTORIES=1000 REAL=30 FUZZ=30 MINUTES=60 SEED=7)
	@$(JOBS) -W ignore -m tests.chaos --workers $(WORKERS) $(if $(HISTORIES),--histories $(HISTORIES)) \
		$(if $(REAL),--real $(REAL)) $(if $(FUZZ),--fuzz $(FUZZ)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

# What imports Airflow, or runs in its environment. pyproject.toml names the rest.
AIRFLOWS_PYTHON := $(wildcard fruits/airflow/*.py) dags plugins local docker infra benchmarks/operate.py scripts/screenshots.py \
	$(wildcard $(addsuffix /*.py, tests/dags tests/docker tests/infra tests/local tests/fruits/airflow)) \
	$(addprefix tests/, running_airflow.py one_dag_is_secret.py triggers.py fruits/lake/test_glue.py scripts/test_compose.py scripts/test_screenshots.py)

# A registry or a folder of one person's machine, named in a file, breaks everyone behind a mirror and everyone else.
lint: setup-dev  ## Style, types, shell scripts, the AWS template, and that no file names a registry or somebody's machine
	@.venvs/jobs/bin/ruff check
	@.venvs/jobs/bin/ruff format --check
	@.venvs/jobs/bin/lint-imports --no-logo --no-cache
	@.venvs/jobs/bin/mypy
	@.venvs/jobs/bin/mypy --python-executable $(AIRFLOW) --cache-dir .mypy_cache/airflow $(AIRFLOWS_PYTHON)
	@$(JOBS) scripts/reference_docs.py --check
	@.venvs/airflow/bin/cfn-lint infra/fruits.yaml
	@git grep --untracked -lzE '^#!.*[/ ](ba)?sh' | xargs -0 .venvs/jobs/bin/shellcheck
	@git grep --untracked -nIE 'pypi[.]org|files[.]pythonhosted|repo1?[.]maven|/[w]ork/|/[r]oot/'; test $$? -eq 1

# The exit code is 1 when a goal is missed.
bench: setup-tensorflow  ## How fast Fruits is against a bare loop, a notebook and Daft; writes build/bench/bench.json (ARGS=bare)
	@$(JOBS) -W ignore -m benchmarks.speed $(ARGS)

bench-quick: setup-tensorflow  ## The same with few photos, in under five minutes
	@$(JOBS) -W ignore -m benchmarks.speed --quick $(ARGS)

bench-growth: setup  ## What a run costs as the bucket grows; writes build/bench/growth.json (ARGS=plan for one part)
	@$(JOBS) -m benchmarks.growth $(ARGS)

audit: setup  ## Known vulnerabilities of all pinned packages; needs a network (ARGS="--service osv")
	@$(PYTHON) scripts/audit.py $(ARGS)

package: setup  ## Pack the jobs environment for a cluster's workers (ARGS="--python /usr/bin/python3.11")
	@$(PYTHON) scripts/package.py $(ARGS)

format: setup-dev  ## Write all Python as lint wants it, and mend what can be mended by itself
	@.venvs/jobs/bin/ruff check --fix
	@.venvs/jobs/bin/ruff format

lock:  ## Write requirements/*.txt from *.in (ARGS=--upgrade for the newest versions)
	$(SETUP) --lock $(ARGS)

clean: stop  ## Remove data/ and build/: the embedded lake and all that was made in it
	@rm -rf build data

distclean: clean  ## Remove the environments as well
	@rm -rf .venvs
