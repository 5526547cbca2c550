# make demo          sets up .venv and runs the main job end to end
# make test          sets up .venv, then linters, types, layers and all tests; GPU tests run where there is a GPU
# make test-oldest   the main job's tests with the oldest releases that are promised (tests/oldest.txt), in .venv-oldest
# make test-next     conversion and checks with the newest TensorRT-RTX, in .venv-next, a layer over .venv
# make test-light    what needs no torch, on the newest Python, in .venv-light: the runtime, conversion from ONNX
# make test-all      all four, the full one last
# make benchmark     measures on this machine's GPU, into benchmarks/results/
# make docs          builds the pages of docs/ as a site into site/
# make wheel         builds the wheel and the source archive into dist/ and checks them
# make clean         back to a fresh clone
#
# PYTHON=python3.12  the interpreter that .venv is made from (3.11 to 3.13)
# PY=python3         use this interpreter as it is and install nothing: for a machine that has torch,
#                    Torch-TensorRT and MLflow but reaches no package index; for demo, test, benchmark, docs and wheel

VENV ?= .venv
OLDEST_PYTHON := 3.11
NEWEST_PYTHON := 3.13
# Of TensorRT-RTX.
NEXT_RELEASE := 1.7.1.116

# $(call first,CONDITION,INTERPRETERS): the first of these that can make environments and meets a condition on v.
first = $(shell for p in $(2); do \
  $$p -c 'import ensurepip, sys, venv; v = sys.version_info[:2]; sys.exit(not ($(1)))' 2>/dev/null \
  && { echo $$p; break; }; done)
version = $(call first,"%d.%d" % v == "$(1)",python$(1) $(wildcard $(HOME)/.pyenv/versions/$(1).*/bin/python3) python3)

PYTHON ?= $(call first,(3$(comma) 11) <= v <= (3$(comma) 13),python3 python3.12 python3.11 python3.13)
comma := ,

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

workers := -n auto --maxprocesses 8 --dist loadgroup
pytest = $(1)/bin/python tests/releases.py && $(1)/bin/python -m pytest $(2) $(workers)

saving := $(addprefix flavor/,test_save.py test_load.py test_staging.py test_mlmodel.py test_imported.py \
  test_cleanup.py test_convert.py sources)
# The main job from conversion to serving, and what touches MLflow, Torch-TensorRT and TensorRT itself.
oldest_tests := $(addprefix tests/,test_installs.py test_store.py plan/test_manifest.py plan/test_files.py $(saving) \
  cli/test_main.py conversion/test_convert.py conversion/test_core.py conversion/test_settings.py \
  engine/test_reference.py engine/test_load.py engine/test_trt.py plan/test_signature.py plan/test_host.py \
  registry/test_promotion.py registry/test_gates.py registry/test_parity.py \
  serving/test_server.py serving/test_promotion_served.py serving/test_mlflow_serve.py serving/protocol/test_protobuf.py)
# A plan is built, described, kept and offered.
next_tests := $(addprefix tests/,conversion/test_convert.py $(saving) plan/test_files.py plan/test_host.py \
  engine/test_load.py engine/test_trt.py)
# Without torch and without MLflow's server.
light_tests := $(addprefix tests/,plan engine test_cache.py test_inputs.py test_errors.py cli/test_parsing.py test_installs.py \
  conversion/from_onnx conversion/test_onnx_runtime.py conversion/test_points.py conversion/test_plan_record.py \
  flavor/sources/test_graphs.py \
  serving/protocol/test_protobuf.py serving/workers/test_shared_memory.py serving/workers/test_ipc.py \
  registry/test_contract.py registry/test_sizes.py registry/test_alias_history.py)

.PHONY: demo python-oldest test test-oldest test-next test-light test-all benchmark docs wheel clean

demo: $(environment)
	@$(PY) examples/quickstart.py

# All four run whatever the others find; pytest's summary comes last.
test: $(environment)
	@status=0; \
	if $(call has,ruff); then echo "ruff"; $(PY) -m ruff check . || status=1; $(PY) -m ruff format --check . || status=1; \
	  else echo "ruff is not installed here: not run"; fi; \
	if $(call has,mypy); then echo "mypy"; $(PY) -m mypy || status=1; \
	  else echo "mypy is not installed here: not run"; fi; \
	if $(call has,importlinter); then echo "layers"; \
	  $(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' --no-cache || status=1; \
	  else echo "import-linter is not installed here: not run"; fi; \
	echo "pytest"; $(PY) -m pytest tests $$($(call has,xdist) && printf '%s ' $(workers)) \
	  || status=1; exit $$status

# Each tells first what it runs with.
# Servers of MLflow 3.10 call what is not there an error of theirs; clients ask again, by themselves for minutes.
test-oldest: export MLFLOW_HTTP_REQUEST_MAX_RETRIES := 1
test-oldest: .venv-oldest/.installed
	@$(call pytest,.venv-oldest,$(oldest_tests))

test-next: .venv-next/.installed
	@$(call pytest,.venv-next,$(next_tests))

test-light: .venv-light/.installed
	@$(call pytest,.venv-light,$(light_tests))

test-all:
	@status=0; for which in test-light test-next test-oldest test; do \
	  $(MAKE) --no-print-directory $$which || status=1; done; exit $$status

benchmark: $(environment)
	@$(PY) -m benchmarks

# The theme's own news of MkDocs is not about these pages.
docs: $(environment)
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

wheel: $(environment)
	@rm -rf dist
	@$(PY) -m build --no-isolation . && $(PY) -m twine check --strict dist/*

clean:
	rm -rf $(VENV) .venv-oldest .venv-next .venv-light dist build site .demo .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call install,ENVIRONMENT,PIP ARGUMENTS)
install = $(1)/bin/python -m pip install -q $(2) > $(1)/install.log 2>&1 \
	  || { tail -n 20 $(1)/install.log >&2; exit 1; }
# $(call need,INTERPRETER,VERSIONS,VARIABLE)
need = test -n "$(1)" || { echo "No Python $(2) with venv is on PATH or among pyenv's" \
	  "(Debian: apt-get install python3-venv); name one: make $(MAKECMDGOALS) $(3)=..." >&2; exit 1; }

$(VENV)/.installed: pyproject.toml
	@$(call need,$(PYTHON),3.11 to 3.13,PYTHON)
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): torch, Torch-TensorRT-RTX, MLflow and the tools." \
	  "This takes minutes and 8 GB, once."
	@$(PYTHON) -m venv $(VENV)
	@$(call install,$(VENV),-e '.[convert-rtx$(comma)s3$(comma)serve$(comma)dev]')
	@touch $@

PYTHON_OLDEST ?= $(call version,$(OLDEST_PYTHON))
# Which interpreter test-oldest would take; nothing if there is none.
python-oldest:
	@echo $(PYTHON_OLDEST)

.venv-oldest/.installed: pyproject.toml tests/oldest.txt
	@$(call need,$(PYTHON_OLDEST),$(OLDEST_PYTHON),PYTHON_OLDEST)
	@echo "Setting up .venv-oldest with $$($(PYTHON_OLDEST) --version) and tests/oldest.txt." \
	  "This takes minutes and 6 GB, once."
	@$(PYTHON_OLDEST) -m venv .venv-oldest
	@$(call install,.venv-oldest,-e '.[convert-rtx$(comma)s3$(comma)serve$(comma)test]' -c tests/oldest.txt)
	@# It imports a module that the bindings of 1.4.0.76 lack.
	@rm -rf .venv-oldest/lib/python$(OLDEST_PYTHON)/site-packages/tensorrt_rtx/plugin
	@touch $@

# A layer: what is installed here comes before what .venv has. Torch-TensorRT's metadata refuses this release, and one
# environment would need to break it.
.venv-next/.installed: pyproject.toml $(VENV)/.installed
	@echo "Setting up .venv-next: TensorRT-RTX $(NEXT_RELEASE) over $(VENV)."
	@$(VENV)/bin/python -m venv .venv-next
	@$(call install,.venv-next,tensorrt-rtx==$(NEXT_RELEASE))
	@.venv-next/bin/python -c 'import pathlib, sys, sysconfig; here = sysconfig.get_path("purelib"); \
	  there = pathlib.Path(sys.argv[1], here.removeprefix(sys.prefix + "/")).resolve(); \
	  pathlib.Path(here, "below.pth").write_text(f"import site; site.addsitedir({str(there)!r})\n")' $(VENV)
	@touch $@

PYTHON_NEWEST ?= $(call version,$(NEWEST_PYTHON))
.venv-light/.installed: pyproject.toml
	@$(call need,$(PYTHON_NEWEST),$(NEWEST_PYTHON),PYTHON_NEWEST)
	@echo "Setting up .venv-light with $$($(PYTHON_NEWEST) --version): the runtime, the server and ONNX, no torch."
	@$(PYTHON_NEWEST) -m venv .venv-light
	@$(call install,.venv-light,-e '.[convert-onnx-rtx$(comma)serve]' pytest pytest-timeout pytest-xdist hypothesis filelock)
	@touch $@
