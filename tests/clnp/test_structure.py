"""Structure of the packages: order of the folders, no circular imports, and docstrings."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import clnp
import clnp_kernels
import clnp_kernels.nn
import clnp_kernels.ops
import clnp_kernels.optim
from clnp import callbacks, data, methods, metrics, models, plots

# A folder of clnp imports only folders before it.
ORDER = (
    *("errors", "ranges", "metrics", "files", "graph", "parallel", "objectives", "data", "models"),
    *("network", "plots", "callbacks", "html", "deploy", "training", "pruning", "learner"),
    *("methods", "integrations", "cli"),
)
ROOTS = {name: Path(package.__path__[0]) for name, package in
         (("clnp", clnp), ("clnp_kernels", clnp_kernels))}  # fmt: skip
PUBLIC = (
    *(clnp, data, models, metrics, plots, callbacks, methods),
    *(clnp_kernels, clnp_kernels.nn, clnp_kernels.ops, clnp_kernels.optim),
)


def name_of(path: Path, package: str) -> str:
    parts = (package, *path.relative_to(ROOTS[package]).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    name_of(path, package): path
    for package, root in ROOTS.items()
    for path in sorted(root.rglob("*.py"))
}


def imports_of(module: str) -> Iterator[str]:
    """Modules of the two packages that a module imports anywhere, also for type checks only."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else ()), *filter(None, [node.module])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            while target and target not in FILES:  # a name in a module
                target = target.rpartition(".")[0]
            if target and target != module:
                yield target


IMPORTS = {module: set(imports_of(module)) for module in FILES}


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that import one another (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in sorted(imports[module]):
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            start = stack.index(module)
            members = stack[start:]
            del stack[start:]
            if len(members) > 1:
                found.append(sorted(members))

    for module in imports:
        if module not in number:
            visit(module)
    return found


def test_circles_are_found() -> None:
    imports = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set(), "e": {"a"}}
    assert circles(imports) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_imports_of_every_form_are_found() -> None:
    assert "clnp.graph.graph" in IMPORTS["clnp.network.network"]  # from ..graph.graph import Graph
    assert "clnp.files.checkpoint" in IMPORTS["clnp.deploy.network_file"]  # from ..files import
    assert "clnp.parallel.on_ray" in IMPORTS["clnp.parallel.workers"]  # in a function
    assert "clnp_kernels.nn" in IMPORTS["clnp.graph.graph"]  # another package
    assert "clnp.data" in IMPORTS["clnp"]  # from . import data


def test_no_module_imports_itself_through_others() -> None:
    assert circles(IMPORTS) == []


@pytest.mark.parametrize("folder", ORDER)
def test_a_folder_imports_folders_before_it(folder: str) -> None:
    allowed = set(ORDER[: ORDER.index(folder) + 1])
    later = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        if module.startswith("clnp.") and module.split(".")[1] == folder
        for target in sorted(targets)
        if target == "clnp" or (target.startswith("clnp.") and target.split(".")[1] not in allowed)
    ]
    assert later == []


def test_every_folder_has_its_place() -> None:
    folders = {module.split(".")[1] for module in FILES if module.startswith("clnp.")}
    assert folders - {"__main__"} == set(ORDER)


def test_the_kernels_import_no_method() -> None:
    for module in FILES:
        if module.split(".")[0] == "clnp_kernels":
            assert not [t for t in IMPORTS[module] if t.split(".")[0] == "clnp"], module


def test_comparison_methods_stay_apart() -> None:
    users = {
        module.split(".")[1]
        for module, targets in IMPORTS.items()
        if module.startswith("clnp.") and any(t.startswith("clnp.methods") for t in targets)
    }
    assert users <= {"methods", "integrations", "cli"}


def has_public_functions(tree: ast.Module) -> bool:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and not node.name.startswith("_") for node in tree.body)


@pytest.mark.parametrize("package", ROOTS)
def test_modules_have_docstrings(package: str) -> None:
    bare = [
        module
        for module, path in FILES.items()
        if module.split(".")[0] == package
        and has_public_functions(tree := ast.parse(path.read_text()))
        and not ast.get_docstring(tree)
    ]
    assert bare == []


def public_objects(package: ModuleType) -> Iterator[tuple[str, object]]:
    for name in getattr(package, "__all__", [n for n in vars(package) if not n.startswith("_")]):
        value = getattr(package, name)
        own = getattr(value, "__module__", "").split(".")[0] in ROOTS
        if own and (inspect.isfunction(value) or inspect.isclass(value)):
            yield name, value


@pytest.mark.parametrize("package", PUBLIC, ids=lambda package: package.__name__)
def test_public_functions_and_classes_have_docstrings(package: ModuleType) -> None:
    """Methods too, unless they override one of a base class, whose docstring then counts."""
    bare = []
    for name, value in public_objects(package):
        # `inspect.getdoc` would inherit, and a dataclass gets its signature as docstring.
        own = value.__doc__ or ""
        if not own or own.startswith(f"{name}("):
            bare.append(name)
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                member = getattr(member, "__func__", member)
                public = not attribute.startswith("_") and inspect.isfunction(member)
                if public and not inspect.getdoc(getattr(value, attribute)):
                    bare.append(f"{name}.{attribute}")
    assert bare == []


def test_importing_clnp_loads_no_figures_tables_or_templates() -> None:
    """They take most of a second."""
    code = "import sys, clnp; print(sorted({'rich', 'jinja2', 'matplotlib'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
