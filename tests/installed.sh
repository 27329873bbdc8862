#!/usr/bin/env bash
# Tests of the operators, modules and Triton kernels, and the demo, against the installed package instead
# of this tree. Usage: tests/installed.sh [PYTHON]; it needs pytest and hypothesis.
set -euo pipefail
python=${1:-python}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT
cp -r "$root/tests" "$root/pyproject.toml" "$away"
cd "$away"
"$python" - "$root" <<'CHECK'
import sys
import clnp
from clnp_kernels import info

assert not clnp.__file__.startswith(sys.argv[1]), f"{clnp.__file__} is not installed"
assert info.implementations()["adam_l1", "cpu"][0].startswith("C++"), info.describe()
CHECK
"$python" -m clnp info
# It looks for the sources; a test that runs the tests again leaves it out too.
export PYTEST_ADDOPTS="--deselect tests/clnp_kernels/ops/test_register.py::test_every_operator_has_all_its_parts"
"$python" -m pytest -q tests/clnp_kernels/ops tests/clnp_kernels/nn tests/clnp_kernels/triton
"$python" -m clnp run permuted-digits --tasks 5 --out demo
"$python" -m clnp verify demo
