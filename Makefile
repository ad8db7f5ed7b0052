# make env | test | test-all | lint | demo. Names the commands; run_all.sh and tests/run.sh do the work.
VENV ?= .venv
export VENV

env:  # the pinned requirements, once
	bash run_all.sh --env

test:  # what takes no whole run: after every change
	bash tests/run.sh -m "not slow"

test-all:
	bash tests/run.sh

lint: env
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

demo:  # seeds to table on two CPU cores
	bash run_all.sh --demo

.PHONY: env test test-all lint demo
