# Two commands from a clean checkout: `make reproduce` and `make test`. Both make .venv when needed.
# Written for GNU make 3.81 and later and any POSIX shell.

SCALE ?= smoke
MODE  ?= run
UV    ?= uv
RUN   := .venv/bin/python
# Where nothing compiled may be kept, every process that is started compiles torch's sources anew: ten seconds each.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help reproduce test notebooks book lint lock clean

help:
	@echo 'make reproduce   run every notebook; SCALE=smoke (default), laptop, gpu or paper; MODE=run or replay; SEEDS=0,1'
	@echo '                 what is recorded is not computed again; ANEW=1 forgets what smoke recorded in build/'
	@echo 'make test        unit tests, the examples in docstrings, and the committed notebooks through nbval'
	@echo 'make notebooks   re-execute the committed notebooks in place, in replay'
	@echo 'make book        one site in build/book from README, notebooks, how-tos and docstrings; nothing is executed'
	@echo 'make lint        ruff over code and notebooks, mypy over rfnlib'
	@echo 'make lock        write requirements.lock anew from pyproject.toml (needs uv)'
	@echo 'make clean       remove build/ and caches; data/ and .venv stay'
	@echo 'make .venv       only install; PYTHON=/path/to/python chooses the interpreter'

reproduce: .venv
	@$(RUN) -m rfnlib reproduce --scale $(SCALE) --mode $(MODE) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ANEW),--anew)

test: .venv
	@RFN_FIGURES='$(CURDIR)/build/figures' $(RUN) -m pytest tests notebooks rfnlib --doctest-modules --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
	  -n auto --maxprocesses 4 --dist loadfile

notebooks: .venv
	@$(RUN) -c 'from rfnlib.reproduce import refresh; refresh()'

# Warnings are errors. Pages are written anew, so none stays whose source is gone; what was read before is kept.
book: .venv
	@rm -rf build/book
	@$(RUN) -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/book
	@echo 'build/book/index.html is the front page.'

lint: .venv
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

lock:
	@command -v $(UV) >/dev/null || { \
	  echo 'make lock needs uv: pip install uv, or say make lock UV=/path/to/uv.' >&2; exit 1; }
	@{ echo '# Exact versions for Python 3.11 to 3.13 on every platform: what the Makefile installs.' && \
	  echo '# Made from the ranges in pyproject.toml by `make lock`; do not edit by hand.' && \
	  $(UV) pip compile --quiet --universal --python-version 3.11 --extra explore --extra test --extra book --upgrade \
	    --no-header --no-annotate pyproject.toml; } > requirements.lock.new \
	  && mv requirements.lock.new requirements.lock || { rm -f requirements.lock.new; exit 1; }

clean:
	@rm -rf build docs/api .pytest_cache .ruff_cache .hypothesis *.egg-info
	@find rfnlib tests notebooks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# The stamp is written last and removed first, so an interrupted install never looks finished: the
# next make starts it over. A finished one whose lock has changed is brought up to date instead.
.PHONY: .venv
.venv: .venv/installed

# `sys.exit(False)` is success.
SUITABLE = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
# -qq hides pip's remarks but not its errors; --no-compile leaves byte-compiling thousands of files,
# most of them never imported, to the first import; the lock names all that is needed, so nothing is resolved.
INSTALL = $(RUN) -m pip install -qq --disable-pip-version-check --no-compile --no-deps
# Half the time of an install is unpacking these, which another process does beside the rest.
LARGE = ^(torch|triton|cuda|nvidia)

.venv/installed: requirements.lock pyproject.toml
	@set -e; \
	if [ ! -f $@ ] || ! $(RUN) -c '$(SUITABLE)' 2>/dev/null; then \
	  rm -rf .venv; found=; complete=; \
	  for python in $(if $(PYTHON),'$(PYTHON)',python3.13 python3.12 python3.11 python3); do \
	    "$$python" -c '$(SUITABLE)' >/dev/null 2>&1 || continue; \
	    found=$${found:-$$python}; \
	    "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || continue; \
	    complete=$$python; break; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'No Python 3.11, 3.12 or 3.13 found$(if $(PYTHON), at $(PYTHON)): install one, or say make PYTHON=/path/to/python.' >&2; \
	    exit 1; \
	  fi; \
	  if [ -z "$$complete" ]; then \
	    echo "$$found lacks the venv module: install it (on Debian and Ubuntu, apt install python3-venv), or say make PYTHON=/path/to/python." >&2; \
	    exit 1; \
	  fi; \
	  echo "Making .venv with $$("$$complete" --version) ..."; \
	  "$$complete" -m venv .venv; \
	fi; \
	rm -f $@; \
	echo 'Installing the locked packages into .venv: a minute or two, once ...'; \
	grep -E '$(LARGE)' requirements.lock | $(INSTALL) -r /dev/stdin & \
	grep -Ev '$(LARGE)' requirements.lock | $(INSTALL) -r /dev/stdin || { wait; exit 1; }; \
	wait $$!; \
	$(INSTALL) -e .; \
	touch $@
