#!/bin/sh
# Builds the C++ operators with AddressSanitizer and UndefinedBehaviorSanitizer in a scratch folder,
# and runs the operators' and the layers' tests and the fuzzer on them; the first finding ends the
# run with its stack. Needs GCC on Linux. Arguments go to pytest instead of the default tests.
#
#   tests/sanitize.sh
#   CLNP_LONG_TESTS=1 tests/sanitize.sh tests/fuzz/test_ops.py
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$root"
cp -r clnp clnp_kernels csrc tests setup.py pyproject.toml README.md LICENSE "$scratch"
cd "$scratch"
rm -f clnp_kernels/*.so
CLNP_SANITIZE=1 CLNP_BUILD_CUDA=0 CLNP_REQUIRE_BUILD=1 "$python" setup.py --quiet build_ext --inplace
# Python and torch are not built for it, so its runtime comes first. Leaks would be theirs.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1:use_sigaltstack=0
UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export LD_PRELOAD ASAN_OPTIONS UBSAN_OPTIONS
PYTHONPATH=$scratch "$python" -c "
from pathlib import Path
import clnp_kernels.ops
from clnp_kernels._register import library_state
assert Path(clnp_kernels.__file__).parent == Path('$scratch/clnp_kernels'), clnp_kernels.__file__
assert library_state('cpu') == 'loaded', library_state('cpu')
assert '__asan_init' in Path(next(Path('clnp_kernels').glob('_cpu*.so'))).read_bytes().decode('latin1')
"
if [ $# -eq 0 ]; then set -- tests/clnp_kernels/ops tests/clnp_kernels/nn tests/fuzz/test_ops.py; fi
PYTHONPATH=$scratch "$python" -m pytest -q -p no:cacheprovider "$@"
