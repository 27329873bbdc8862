# make demo    install into .venv, then learn five tasks of permuted digits (under 2 minutes)
# make test    install into .venv, then run the tests
# make check   formatting, lint and types
# make docs    documentation as a site in build/site, API reference included
# make build   compile the C++ library again after a change in csrc/, and before a benchmark
# make versions    operators, modules, Triton kernels and the demo under every supported torch
# A second call installs nothing. PYTHON chooses the interpreter that makes .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
SOURCES := $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh csrc/cuda/device/*)

.PHONY: demo test check docs build versions sanitize clean

demo: $(STAMP)
	$(BIN)/clnp run permuted-digits --tasks 5 --out runs/demo --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)

# --strict: a broken link or a public name without docstring fails
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

build: $(STAMP)
	CLNP_REQUIRE_BUILD=1 $(BIN)/python setup.py --quiet build_ext --inplace

# an environment for each of the four rows, some 6 GB each, in build/versions
versions:
	tests/versions.sh

# the C++ operators under AddressSanitizer and UBSan
sanitize: $(STAMP)
	tests/sanitize.sh

clean:
	rm -rf build dist *.egg-info clnp_kernels/*.so

# torch and torchvision go together, in one call, so that they fit each other. The build comes last and
# without isolation: it then uses this very torch instead of fetching another one.
$(STAMP): pyproject.toml setup.py $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.11" torchvision setuptools wheel ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[vision,dev]"
	touch $(STAMP)

$(VENV)/docs: $(STAMP)
	$(BIN)/python -m pip install --quiet "clnp[docs]"
	touch $(VENV)/docs
