"""The imports of the benchmarks."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def modules() -> dict[str, Path]:
    found = {path.relative_to(ROOT): path for path in (ROOT / "benchmarks").rglob("*.py")}
    return {
        ".".join(p.with_suffix("").parts).removesuffix(".__init__"): f for p, f in found.items()
    }


def imports(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules that a file imports, anywhere in it and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in known:
            parts = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (part if part in known else node.module for part in parts)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def test_no_circle() -> None:
    known = modules()
    graph = {name: {*imports(file, known)} - {name} for name, file in known.items()}
    assert "benchmarks.documented" in graph["benchmarks.pages.reproduced"]
    TopologicalSorter(graph).prepare()  # raises CycleError
    with pytest.raises(CycleError):
        TopologicalSorter(
            {**graph, "benchmarks.documented": {"benchmarks.pages.reproduced"}}
        ).prepare()
