# `make` needs python3 3.11 or newer and the package index. It writes only to .venv and .tox.

PYTHON ?= python3
# CI must have every Python; a developer's run skips missing ones and reports them.
MISSING = $(if $(CI),false,true)
# pyenv's interpreters come after those on PATH.
PYENV = $(shell printf ':%s' $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/3.*/bin))

.PHONY: help copy test serve bench lock clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

copy: .venv/service ## copy a file through the queue: start the service, copy, compare, stop
	@.venv/bin/python docs/demo.py $(if $(FILE),"$(FILE)")

test: .venv/tox ## run the tests on every installed Python, style and types (one: .venv/bin/tox run -e py311)
	PATH="$$PATH$(PYENV)" .venv/bin/tox run-parallel --parallel 3 --parallel-no-spinner --skip-missing-interpreters $(MISSING)

serve: .venv/service ## serve on http://127.0.0.1:5000 (PORT=… for another), messages in queue.db
	.venv/bin/gunicorn handler:app

bench: .venv/bench ## measure the service and its peers, print the ratios, plot them in docs/performance.svg
	.venv/bin/python -m benchmarks --plot docs/performance.svg

lock: .venv/tox ## update requirements.txt after a change in pyproject.toml
	.venv/bin/tox run -e lock

clean: ## delete the files that make created
	rm -rf .venv .tox dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamp files: make repeats a set-up step when its inputs change.
.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit("python3 3.11 or newer is needed; name one with make PYTHON=…") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/service: .venv/made requirements.txt pyproject.toml
	.venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

# The peers' clients, and peers that are Python packages. The pip of Python 3.11 does not support groups.
.venv/bench: .venv/service
	.venv/bin/python -m pip install -qq --disable-pip-version-check 'pip>=25.1'
	.venv/bin/python -m pip install -qq --disable-pip-version-check --group bench
	@touch $@

.venv/tox: .venv/made
	.venv/bin/python -m pip install -qq --disable-pip-version-check tox
	@touch $@
