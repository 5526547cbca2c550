# make demo        sets up .venv and runs the main job end to end
# make test        sets up .venv, then linters, types and all tests; GPU tests run where there is a GPU
# make benchmark   measures on this machine's GPU, into benchmarks/results/
# make wheel       builds the wheel and the source archive into dist/ and checks them
# make clean       back to a fresh clone
#
# PYTHON=python3.12   the interpreter that .venv is made from (3.10 to 3.13)
# PY=python3          use this interpreter as it is and install nothing: for a machine that has torch,
#                     Torch-TensorRT and MLflow but reaches no package index

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13 python3.10; do \
  $$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
  && { echo $$p; break; }; done)

ifdef PY
environment :=
# The package is not installed there; child processes need to find it too.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY := $(VENV)/bin/python
environment := $(VENV)/.installed
endif

# Whether a tool is there: it always is in .venv, but PY's machine may lack linters and plugins.
has = $(PY) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("$(1)") is None)'

.PHONY: demo test benchmark wheel clean

demo: $(environment)
	@$(PY) examples/quickstart.py

# All three run whatever the others find; pytest's summary comes last.
test: $(environment)
	@status=0; \
	if $(call has,ruff); then echo "ruff"; $(PY) -m ruff check . || status=1; $(PY) -m ruff format --check . || status=1; \
	  else echo "ruff is not installed here: not run"; fi; \
	if $(call has,mypy); then echo "mypy"; $(PY) -m mypy || status=1; \
	  else echo "mypy is not installed here: not run"; fi; \
	echo "pytest"; $(PY) -m pytest tests $$($(call has,xdist) && printf '%s ' -n auto --maxprocesses 8 --dist loadgroup) \
	  || status=1; exit $$status

benchmark: $(environment)
	@$(PY) -m benchmarks

wheel: $(environment)
	@rm -rf dist
	@$(PY) -m build --no-isolation . && $(PY) -m twine check --strict dist/*

clean:
	rm -rf $(VENV) dist build .demo .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 with venv is on PATH" \
	  "(Debian: apt-get install python3-venv); name one: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): torch, Torch-TensorRT-RTX, MLflow and the tools." \
	  "This takes minutes and 7 GB, once."
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -q -e '.[convert-rtx,s3,serve,dev]' > $(VENV)/install.log 2>&1 \
	  || { tail -n 20 $(VENV)/install.log >&2; exit 1; }
	@touch $@
