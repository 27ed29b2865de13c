# All commands for a checkout. `make` alone lists them.
PYTHON ?= python3
AIRFLOW := .venvs/airflow/bin/python
JOBS := .venvs/jobs/bin/python
SETUP = @$(PYTHON) scripts/setup.py
COMPOSE = @$(PYTHON) scripts/compose.py
export IMAGES PHOTO KEY

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run ui put airflow stop up down logs password backup restore test test-compose lint package lock clean distclean

help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup:  ## Make this machine ready; quick when nothing is to do (PYTHON=python3.12 to choose one)
	$(SETUP)

setup-dev:
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

# Each test runs in the environment it is for. Both run whatever the first says. pytest's 5 means that no test was
# selected: with ARGS that may be so in one of them, not in both.
test: setup-dev  ## All tests (ARGS="-k moments" for some of them)
	@jobs=0; JAVA_HOME="$$(cat .venvs/java_home)" $(JOBS) -m pytest -m "not airflow" $(ARGS) || jobs=$$?; \
	airflow=0; $(AIRFLOW) -m pytest -m "airflow and not compose" $(ARGS) || airflow=$$?; \
	case "$$jobs $$airflow" in \
		"0 0") ;; \
		"0 5" | "5 0") $(if $(ARGS),true,echo "One environment has no tests." && false) ;; \
		*) echo "Tests failed (pytest returned $$jobs in the jobs environment, $$airflow in the airflow environment)."; false ;; \
	esac

test-compose: setup-dev  ## What docker-compose.yaml promises, in real containers: needs Docker, takes 20 min
	@$(AIRFLOW) -m pytest -m compose -s tests/docker $(ARGS)

# A registry or a folder of one person's machine, named in a file, breaks everyone behind a mirror and everyone else.
lint: setup-dev  ## Style, types, shell scripts, the AWS template, and that no file names a registry or somebody's machine
	@.venvs/jobs/bin/ruff check
	@.venvs/jobs/bin/ruff format --check
	@.venvs/jobs/bin/mypy
	@$(JOBS) scripts/reference_docs.py --check
	@.venvs/airflow/bin/cfn-lint infra/fruits.yaml
	@git grep --untracked -lzE '^#!.*[/ ](ba)?sh' | xargs -0 .venvs/jobs/bin/shellcheck
	@git grep --untracked -nIE 'pypi[.]org|files[.]pythonhosted|repo1?[.]maven|/[w]ork/|/[r]oot/'; test $$? -eq 1

package: setup  ## Pack the jobs environment for a cluster's workers (ARGS="--python /usr/bin/python3.11")
	@$(PYTHON) scripts/package.py $(ARGS)

lock:  ## Write requirements/*.txt from *.in (ARGS=--upgrade for the newest versions)
	$(SETUP) --lock $(ARGS)

clean: stop  ## Remove data/ and build/: the embedded lake and all that was made in it
	@rm -rf build data

distclean: clean  ## Remove the environments as well
	@rm -rf .venvs
