"""The documentation agrees with the code: messages, links, docstrings, pictures, the notebook."""

import ast
import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
WRAPPED = [page for page in PAGES if page.name != "CHANGELOG.md"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CODE = [
    *(path for name in ("clnp", "clnp_kernels") for path in (ROOT / name).rglob("*.py")),
    ROOT / "setup.py",
]
MESSAGES = re.findall(r"```text\n(.*?)\n```", (DOCS / "troubleshooting.md").read_text(), re.DOTALL)
VARIABLE = "\0"
# Avalanche is optional, so `make docs` alone looks at clnp.integrations.avalanche.
MODULES = [
    name
    for name in re.findall(r"reference/(\S+)\.md", (ROOT / "mkdocs.yml").read_text())
    if name != "clnp.integrations.avalanche"
]


def template(node: ast.AST) -> str:
    """The text of a string in the code, with a mark for what is filled in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else VARIABLE
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return VARIABLE


@pytest.fixture(scope="module")
def texts() -> list[str]:
    trees = (ast.parse(path.read_text()) for path in CODE)
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    found = (template(node) for tree in trees for node in ast.walk(tree) if isinstance(node, kinds))
    return [" ".join(text.split()) for text in found if len(text) > 8]


@pytest.mark.parametrize("message", MESSAGES)
def test_quoted_messages_are_in_the_code(message: str, texts: list[str]) -> None:
    parts = [re.escape(part) for part in message.split("...")]
    assert any(len(part) > 8 for part in parts)
    pattern = re.compile(f".*{VARIABLE}.*".join(parts).removeprefix(f".*{VARIABLE}.*"))
    assert any(pattern.search(text) for text in texts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_are_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?![a-z]+:)([^)\s#]*)#([^)\s]+)\)", page.read_text()):
        other = page.parent / target if target else page
        headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
        slugs = [re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings]
        assert anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("file", ["docs/index.md", "mkdocs.yml"])
def test_the_map_names_every_page(file: str) -> None:
    text = (ROOT / file).read_text()
    assert [p.name for p in DOCS.glob("*.md") if p.name != "index.md" and p.name not in text] == []


@pytest.mark.parametrize("page", WRAPPED, ids=lambda page: page.name)
def test_prose_is_at_most_100_columns_wide(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    long = [line for line in text.splitlines() if len(line) > 100]
    assert [line for line in long if not re.match(r"\||#|!?\[|.*\]\(\S+\)\S*$", line)] == []


def public_objects() -> Iterator[tuple[str, Any]]:
    """The public classes and functions of the API reference, and the methods of these classes."""
    for module in map(importlib.import_module, MODULES):
        names = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        for name in names:
            found = getattr(module, name)
            if not (inspect.isclass(found) or inspect.isroutine(found)):
                continue
            if hasattr(module, "__all__") or found.__module__ == module.__name__:
                yield f"{module.__name__}.{name}", found
                for inner, method in vars(found).items() if inspect.isclass(found) else ():
                    if not inner.startswith("_") and inspect.isroutine(method):
                        yield f"{module.__name__}.{name}.{inner}", getattr(found, inner)


@pytest.mark.parametrize(("name", "found"), [pytest.param(*p, id=p[0]) for p in public_objects()])
def test_docstrings_name_arguments_that_exist(name: str, found: Any) -> None:
    text = inspect.getdoc(found)  # that of the method which it overrides, if it has none
    assert text, f"{name} has no docstring"
    listed = re.search(r"^Arguments:\n((?: {4,}.*\n|\n)*)", text + "\n", re.MULTILINE)
    parameters = inspect.signature(found).parameters if listed else {}
    if listed and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        entries = re.findall(r"^ {4}([\w*][\w, *]*):", listed[1], re.MULTILINE)
        documented = {word.strip("* ") for entry in entries for word in entry.split(",")}
        assert documented <= set(parameters)


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_are_those_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawings = load(DOCS / "images" / "draw.py", monkeypatch).DRAWINGS
    assert {path.stem for path in (DOCS / "images").glob("*.svg")} == set(drawings)
    for name, draw in drawings.items():
        draw().save(tmp_path / "new.svg")
        committed = DOCS / "images" / f"{name}.svg"
        new = (tmp_path / "new.svg").read_text()
        assert new == committed.read_text(), "run python docs/images/draw.py"
        assert len(new) < 100_000


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code cells run as plain Python; the committed outputs are of a whole, clean run."""
    import matplotlib.pyplot as plt

    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(out["output_type"] == "error" for cell in cells for out in cell["outputs"])
    assert notebook.stat().st_size < 300_000
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
