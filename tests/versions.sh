#!/usr/bin/env bash
# The package under every supported pair of torch and triton: operators, modules, Triton kernels and
# the demo, each against an installed wheel in an environment of its own.
#
# Usage: tests/versions.sh [TORCH ...]     e.g. tests/versions.sh 2.11 2.14; default: all rows
#
# One wheel, built with the oldest torch, serves all rows. Environments are kept in build/versions (several
# GB each; CLNP_VERSIONS_DIR names another folder), so a second call installs the new wheel only. Ends with
# a table, and with a failure if any row failed.
set -euo pipefail
shopt -s inherit_errexit
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${CLNP_VERSIONS_DIR:-$root/build/versions}

# torch, Python, numpy (the interpreter of triton 3.6 needs one before 2.4); "newest" is what pip takes
ROWS="
2.11   3.10 numpy<2.4
2.13   3.12 numpy
2.14   3.11 numpy
newest 3.13 numpy
"

rows_wanted() {
    while read -r torch python numpy; do
        [ -n "$torch" ] || continue
        if [ $# = 0 ] || [[ " $* " == *" $torch "* ]]; then echo "$torch $python $numpy"; fi
    done <<<"$ROWS"
}

environment() { # torch python numpy -> the environment's interpreter, made where it is missing
    local place="$folder/torch-$1" pin="torch==$1.*"
    [ "$1" = newest ] && pin="torch"
    if [ ! -f "$place/complete" ]; then
        "python$2" -c "" || { echo "versions.sh: python$2 is needed for torch $1" >&2; exit 2; }
        "python$2" -m venv --clear "$place" >&2
        "$place/bin/python" -m pip install --quiet --upgrade pip >&2
        "$place/bin/python" -m pip install --quiet "$pin" "$3" "setuptools>=77" wheel ninja pytest hypothesis >&2
        touch "$place/complete"
    fi
    echo "$place/bin/python"
}

versions_of() { # interpreter -> "torch triton python"
    "$1" - <<'PY'
import platform
from importlib.metadata import PackageNotFoundError, version

def found(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"

print(found("torch").split("+")[0], found("triton"), platform.python_version())
PY
}

mapfile -t rows < <(rows_wanted "$@")
[ "${#rows[@]}" -gt 0 ] || { echo "versions.sh: no row for: $*" >&2; exit 2; }
mkdir -p "$folder"

# shellcheck disable=SC2086
first=$(environment ${rows[0]})
rm -rf "$folder/wheel"
CLNP_BUILD_CUDA=0 CLNP_REQUIRE_BUILD=1 "$first" -m pip wheel --quiet --no-deps --no-build-isolation \
    --wheel-dir "$folder/wheel" "$root"

failed=0
table=$(printf '%-8s %-8s %-8s %s' torch triton python result)
for row in "${rows[@]}"; do
    # shellcheck disable=SC2086
    python=$(environment $row)
    "$python" -m pip install --quiet --force-reinstall --no-deps "$folder"/wheel/*.whl
    "$python" -m pip install --quiet "$folder"/wheel/*.whl # what it requires
    log="$folder/${row%% *}.log"
    report="$folder/compiled-${row%% *}.csv"
    if CLNP_COMPILED_REPORT=$report bash "$root/tests/installed.sh" "$python" >"$log" 2>&1; then
        result=$(grep -E '^[0-9]+ passed' "$log" | tail -n 1)
    else
        result="FAILED, see $log"
        failed=1
        tail -n 30 "$log"
    fi
    # shellcheck disable=SC2046
    table+=$'\n'$(printf '%-8s %-8s %-8s %s' $(versions_of "$python") "$result")
    echo "$table" | tail -n 1
done
printf '\n%s\n' "$table"
exit "$failed"
