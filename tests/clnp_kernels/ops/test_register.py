"""The implementation that serves an operator, and the parts that every operator has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clnp_kernels import _register, info, ops
from tests.clnp_kernels.ops import again

ROOT = Path(__file__).parents[3]
# operators of one stem
PREFIXES = ("masked_linear", "masked_conv2d", "partial_batch_norm", "partial_layer_norm")


def stem(name: str) -> str:
    return next((prefix for prefix in PREFIXES if name.startswith(prefix)), name)


def python(code: str, *, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh Python; variables of ours in this one's environment are left out."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CLNP_")}
    command = [sys.executable, "-c", code]
    options = {"cwd": cwd, "env": {**clean, **environment}}
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("name", [*_register.OPS])
def test_every_operator_has_all_its_parts(name: str) -> None:
    for pattern in (
        "clnp_kernels/ops/{}.py",
        "clnp_kernels/reference/{}.py",
        "csrc/cpu/{}.cpp",
        "tests/clnp_kernels/ops/test_{}.py",
    ):
        assert (ROOT / pattern.format(stem(name))).exists()
    documentation = getattr(ops, name).__doc__
    assert documentation
    assert "Raises:" in documentation
    assert name in ops.__all__


def test_info() -> None:
    table = info.implementations()
    assert {name for name, _ in table} == set(_register.OPS)
    assert all(reason for implementation, reason in table.values() if implementation == "reference")
    text = info.describe()
    assert all(word in text for word in ("adam_l1", "torch", torch.__version__, "cpu"))


def test_import_is_cheap() -> None:
    result = python("import clnp_kernels, sys; print('torch' in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr
    result = python("import sys; from clnp_kernels import ops; print('triton' in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr


MISSING = """
import warnings
from clnp_kernels import _register
_register.LIBRARIES["cpu"] = ("CPU", "C++", "_cpu_missing*.so")
import torch
from clnp_kernels import ops
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(3):
        y = ops.masked_linear(torch.ones(2, 3), torch.ones(1, 1), torch.ones(4, 3))
        ops.channel_activity(y)
ours = [w.category.__name__ for w in seen if w.category.__module__.startswith("clnp_kernels")]
print(len(ours), *ours, y.sum().item())
"""


def test_missing_library_warns_once() -> None:
    result = python(MISSING)
    assert result.stdout.split() == ["1", "ReferenceWarning", "26.0"], result.stderr


REASON = """
import sys, warnings
import torch
from clnp_kernels import _register, ops
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    ops.channel_activity(torch.ones(2, 3))
print(seen[0].message)
"""


ONLY_THERE = """
from importlib import metadata
everywhere = metadata.distributions
metadata.distributions = lambda **about: everywhere(**{{**about, "path": [{!r}]}})
"""


def copy_of_the_package(folder: Path, *, source_tree: bool) -> Path:
    """A copy of clnp_kernels without compiled libraries, in a source tree or as if installed."""
    hide = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(_register.FOLDER, folder / "clnp_kernels", ignore=hide)
    if source_tree:
        (folder / "csrc").mkdir()
        (folder / "setup.py").touch()
    return folder


def test_an_unbuilt_source_tree_is_named(tmp_path: Path) -> None:
    """Not the compiler is blamed, and the command that builds is told."""
    tree = copy_of_the_package(tmp_path / "tree", source_tree=True)
    message = python(REASON, cwd=tree, PYTHONPATH="").stdout
    assert "not built in this source tree" in message
    assert f"`make build` or `pip install --no-build-isolation -e .` in {tree}" in message
    assert "compiler" not in message


def test_a_compiled_installation_that_is_hidden_is_named(tmp_path: Path) -> None:
    tree = copy_of_the_package(tmp_path / "tree", source_tree=True)
    installed = copy_of_the_package(tmp_path / "site", source_tree=False)
    metadata = installed / "clnp-0.0.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: clnp\nVersion: 0.0.0\n")
    hidden = "the compiled clnp that is installed is hidden"
    code = f"{ONLY_THERE.format(str(installed))}\n{REASON}"  # not the one of this environment
    assert hidden not in python(code, cwd=tree).stdout
    (installed / "clnp_kernels" / "_cpu.abi3.so").touch()
    assert hidden in python(code, cwd=tree).stdout


def test_an_installation_without_library_names_the_compiler(tmp_path: Path) -> None:
    installed = copy_of_the_package(tmp_path / "site", source_tree=False)
    message = python(REASON, cwd=installed, PYTHONPATH="").stdout
    assert "install a C++17 compiler and reinstall clnp" in message
    assert "source tree" not in message


WORKER = """
import multiprocessing, sys, warnings
from clnp_kernels import _register
_register.LIBRARIES["cpu"] = ("CPU", "C++", "_cpu_missing*.so")

def work(_):
    import torch
    from clnp_kernels import ops
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ops.channel_activity(torch.ones(2, 3))
    return len(seen)

if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(work, range(2)), work(0))
"""


def test_workers_do_not_repeat_the_warning() -> None:
    assert python(WORKER).stdout.strip() == "[0, 0] 1"


def test_forced_reference_is_silent() -> None:
    result = python(MISSING, CLNP_REFERENCE="1")
    assert result.stdout.split() == ["0", "26.0"], result.stderr


def test_strict_mode_raises() -> None:
    result = python(MISSING, CLNP_STRICT="1")
    assert result.returncode != 0
    assert "MissingImplementationError: clnp_kernels::masked_linear_fwd" in result.stderr


def test_reference_passes_the_same_tests() -> None:
    """Tests of the operators, again, with the reference in place of the compiled library."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["tests/clnp_kernels/ops", f"--ignore={__file__}", "-k", again.SELECTED]
    environment = {**os.environ, "CLNP_REFERENCE": "1"}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    result = subprocess.run(command, check=False, **options)
    assert result.returncode == 0, result.stdout[-3000:]
