# All commands for a checkout. `make` alone lists them.
PYTHON ?= python3
AIRFLOW := .venvs/airflow/bin/python
JOBS := .venvs/jobs/bin/python
SETUP = @$(PYTHON) scripts/setup.py
COMPOSE = @$(PYTHON) scripts/compose.py
export IMAGES PHOTO KEY

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run ui put airflow stop up down logs password backup restore test test-fast test-slow test-compose chaos bench-growth lint audit format package lock clean distclean

help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup:  ## Make this machine ready; quick when nothing is to do (PYTHON=python3.12 to choose one)
	$(SETUP)

setup-dev:  ## What `make setup` does, and the tools for tests and lint
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

# Each test runs in the environment it is for: the files of tests on WORKERS processes, in a random order whose seed pytest
# prints (ARGS="--randomly-seed=1" repeats it). Both environments run whatever the first
# says. pytest's 5 means that no test was selected: with ARGS or PART that may be so, else not.
WORKERS ?= 2
PYTEST = -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PARTED) $(COVERED)
PARTED = $(if $(PART),--part $(PART))
COVERED = $(if $(COVERAGE),--cov --cov-report= --cov-fail-under=0)
FAST = not server and not jvm and not heavy and not slow and not compose
define run_tests
	@jobs=0; COVERAGE_FILE=build/coverage/jobs JAVA_HOME="$$(cat .venvs/java_home)" $(JOBS) $(PYTEST) -m "not airflow and $(1)" $(ARGS) || jobs=$$?; \
	airflow=0; COVERAGE_FILE=build/coverage/airflow $(AIRFLOW) $(PYTEST) -m "airflow and $(1)" $(ARGS) || airflow=$$?; \
	case "$$jobs $$airflow" in \
		"0 0") ;; \
		"0 5" | "5 0") $(if $(ARGS)$(PART),true,echo "One environment has no tests." && false) ;; \
		"5 5") $(if $(PART),true,echo "No test was selected." && false) ;; \
		*) echo "Tests failed (pytest returned $$jobs in the jobs environment, $$airflow in the airflow environment)."; false ;; \
	esac
endef

test: setup-dev  ## All tests but the slow and the containers' (ARGS="-k moments" for some, COVERAGE=1 to measure it)
	@rm -rf build/coverage && mkdir -p build/coverage
	$(call run_tests,not slow and not compose)
	$(if $(COVERAGE),@$(JOBS) -m coverage combine --quiet build/coverage/jobs build/coverage/airflow && $(JOBS) -m coverage report)

test-fast: setup-dev  ## Units and properties, in a minute: no server, no JVM, no other program
	$(call run_tests,$(FAST))

test-slow: setup-dev  ## What is too slow for each change (PART=1/4: the first of four parts)
	$(call run_tests,slow and not compose)

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
