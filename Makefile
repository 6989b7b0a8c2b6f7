# make test | test-rest | test-all | demo | bench | lint | format | build | wheel | clean
#
# Everything is installed into $(VENV), and nothing outside this folder. The package is built again
# when pyproject.toml, setup.py, build_support.py, csrc/ or TORCH changes, and compiles what these
# changes concern.
#
#   TORCH     what to install as torch. The default is the version that the committed benchmarks
#             used. `make test TORCH=torch` takes the newest; where that is a CUDA build and a
#             CUDA toolkit is found, the CUDA kernels are built as well.
#   PYTHON    the interpreter of the environment
#   PYTEST    more arguments for pytest, e.g. `make test PYTEST='-k backward -x'`
#   WORKERS   how many test processes run at once
#   QUIET     -q; `make build QUIET=-v` shows every file that is compiled
#   MINUTES   `make test-rest` starts no test after so many minutes; without it, all are run

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
PYTEST ?=
QUIET ?= -q
CORES := $(shell n=$$(nproc 2>/dev/null || echo 2); [ "$$n" -lt 8 ] && echo "$$n" || echo 8)
WORKERS ?= $(CORES)
MINUTES ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_STAMP := $(VENV)/.torch-$(subst /,_,$(TORCH))
STAMP := $(VENV)/.customloss
SOURCES := $(shell find csrc -type f) setup.py build_support.py pyproject.toml
CPP := find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'
ifeq ($(CI),true)
export CUSTOMLOSS_WERROR ?= 1
endif
# installs the requirements of one extra, without building again; $(2) are more options of pip
extra = $(BIN)/python -c "import importlib.metadata as m; e = 'extra == \"$(1)\"'; \
	print(*(r.replace(e, 'python_version > \"3\"') for r in m.requires('customloss') if e in r), \
	sep='\n')" \
	> $(VENV)/$(1).txt && $(PIP) install -q $(2) -r $(VENV)/$(1).txt
# each test process has one thread; a test that is about threads sets its own number
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

# these take a few minutes; the rest are further cases of the same kinds, and tests that take long
DEFAULT := not more and not slow and not sanitize and not packaging

.PHONY: test test-rest test-all demo bench lint format build wheel clean
.DELETE_ON_ERROR:

test: $(VENV)/.peers
	$(TEST) -m "$(DEFAULT)" $(PYTEST)

# in the order in which the tests are collected, which has the wheels last
test-rest: $(VENV)/.peers $(VENV)/.wheel
	$(TEST) --dist loadgroup --no-loadscope-reorder -m "not ($(DEFAULT))" \
		$(if $(MINUTES),--minutes $(MINUTES)) $(PYTEST)

test-all: $(VENV)/.peers $(VENV)/.wheel
	$(TEST) --dist loadgroup $(PYTEST)

demo: $(VENV)/.demo
	$(BIN)/customloss demo

bench: $(VENV)/.demo
	$(BIN)/customloss bench

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(CPP) | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy --strict customloss

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(CPP) | xargs $(BIN)/clang-format -i

build: $(STAMP)

wheel: $(VENV)/.wheel
	$(BIN)/python tools/wheel.py dist

clean:
	rm -rf $(VENV) build dist customloss.egg-info customloss/_build.json
	rm -f customloss/_C.abi3.so customloss/_C_cuda.abi3.so customloss/_C*.cpython-*.so
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# torch is installed first, so that the build below compiles against it and fetches no other
$(TORCH_STAMP): | $(VENV)/bin/python
	rm -f $(VENV)/.torch-*
	$(PIP) install -q "$(TORCH)" "setuptools>=77" ninja
	touch "$@"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(TORCH_STAMP) $(SOURCES)
	@echo "building customloss: about a minute on two cores, more with CUDA kernels"
	$(PIP) install $(QUIET) --no-build-isolation -e ".[test,demo]"
	$(BIN)/python -c "import customloss; print(customloss.build_info())"
	touch "$@"

$(VENV)/.peers: $(STAMP)
	$(call extra,peers)
	$(call extra,peers-alone,--no-deps)
	touch "$@"

$(VENV)/.demo: $(STAMP)
	$(call extra,bench)
	touch "$@"

$(VENV)/.wheel: $(STAMP)
	$(call extra,wheel)
	touch "$@"

$(VENV)/.dev: $(STAMP)
	$(call extra,dev)
	touch "$@"
