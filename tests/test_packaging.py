"""What a release consists of: one version, complete archives, true tags, valid workflows."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePath
from typing import Any

import pytest
from setuptools.command.egg_info import FileList

import clnp_kernels

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
PYPROJECT = (ROOT / "pyproject.toml").read_text()
CLASSIFIED = re.findall(r"Python :: (3\.\d+)", PYPROJECT)
# Kept in the repository, of no use outside of it.
NOT_RELEASED = (".ci/", ".github/", ".gitignore", "MANIFEST.in")
BUILD = """
import sys
from setuptools import build_meta
getattr(build_meta, sys.argv[1])(sys.argv[2])
"""
LONG = pytest.mark.skipif(
    not os.environ.get("CLNP_LONG_TESTS"), reason="builds archives; CLNP_LONG_TESTS=1 runs it"
)


def tracked() -> list[str]:
    """The files of the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip("no repository")
    return [name for name in result.stdout.splitlines() if (ROOT / name).is_file()]


def test_one_version() -> None:
    version = clnp_kernels.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", version)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert 'version = { attr = "clnp_kernels.__version__" }' in PYPROJECT


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from clnp.cli import main

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"clnp {clnp_kernels.__version__}\n"


def test_info_tells_versions_and_operators(capsys: pytest.CaptureFixture[str]) -> None:
    from clnp.cli import main

    assert main(["info"]) == 0
    text = capsys.readouterr().out
    rows = dict(re.findall(r"^(\S+) +(\S.*)$", text, re.MULTILINE))
    assert {"clnp", "torch", "python", "cpu", "gpus", "onnxruntime", "masked_linear_fwd"} <= {*rows}
    assert str(Path.home()) not in text


def test_every_file_is_in_the_source_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python files of the packages and the build's own files are added by setuptools."""
    monkeypatch.chdir(ROOT)
    files = FileList()
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        files.process_template_line(line)
    included = {*map(str, files.files), "pyproject.toml", "setup.py"}
    packages = re.compile(r"(clnp|clnp_kernels)/(.*\.py|py\.typed)$")
    missing = [
        name
        for name in tracked()
        if name not in included and not packages.match(name) and not name.startswith(NOT_RELEASED)
    ]
    assert missing == []


def test_packages_are_typed_and_whole() -> None:
    for package in ("clnp", "clnp_kernels"):
        assert (ROOT / package / "py.typed").is_file()
        for folder in (ROOT / package).rglob("*/"):
            if any(folder.glob("*.py")):
                assert (folder / "__init__.py").is_file(), folder


@pytest.mark.parametrize("package", ["clnp", "clnp_kernels"])
def test_data_files_are_in_the_wheel(package: str) -> None:
    data = PYPROJECT[PYPROJECT.index("[tool.setuptools.package-data]") :]
    found = re.search(rf"^{package} = (\[.*?\])", data, re.MULTILINE | re.DOTALL)
    assert found
    patterns = ast.literal_eval(found[1])
    for name in tracked():
        path = PurePath(name)
        if path.parts[0] == package and path.suffix not in (".py", ".md"):
            inside = path.relative_to(package)
            assert any(inside.match(pattern) for pattern in patterns), name


def load(path: Path) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.load(path.read_text(), yaml.BaseLoader)


def workflow(name: str) -> Any:
    return load(GITHUB / "workflows" / f"{name}.yml")


@pytest.mark.parametrize("name", ["tests", "wheels"])
def test_scripts_of_workflows_are_there(name: str) -> None:
    steps = [step for job in workflow(name)["jobs"].values() for step in job["steps"]]
    for script in re.findall(r"bash (\S+)", " ".join(step.get("run", "") for step in steps)):
        assert (ROOT / script).is_file(), script


def test_wheels_are_tried_at_both_ends() -> None:
    """Under the oldest and the newest Python and torch."""
    oldest = re.findall(r'"torch>=([\d.]+)"', PYPROJECT)[0]
    matrix = workflow("wheels")["jobs"]["try"]["strategy"]["matrix"]
    assert matrix["python"] == [CLASSIFIED[0], CLASSIFIED[-1]]
    assert matrix["torch"] == [f"=={oldest}.0", f">={oldest}"]


def test_the_matrix_of_versions() -> None:
    """The workflow and the script have the same rows, from the oldest versions to the newest."""
    script = (ROOT / "tests" / "versions.sh").read_text()
    table = re.findall(r'^ROWS="\n(.*?)^"', script, re.MULTILINE | re.DOTALL)[0]
    rows = [tuple(line.split()[:2]) for line in table.splitlines()]
    included = workflow("tests")["jobs"]["versions"]["strategy"]["matrix"]["include"]
    assert [(row["torch"], row["python"]) for row in included] == rows
    assert rows[0][0] == re.findall(r'"torch>=([\d.]+)"', PYPROJECT)[0]
    assert rows[-1][0] == "newest"
    assert {python for _, python in rows} == set(CLASSIFIED)


def test_forms_have_what_forms_need() -> None:
    forms = [p for p in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml"]
    assert forms
    for form in map(load, forms):
        assert {"name", "description", "body"} <= set(form)
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))


def extras_named(text: str) -> set[str]:
    """The extras of every clnp[one,two] in a text."""
    return {name for names in re.findall(r"clnp\[([\w,]+)\]", text) for name in names.split(",")}


def test_extras_are_there() -> None:
    """Those that errors, the documentation and other extras name."""
    extras = set(
        re.findall(r"^(\w+) = \[", PYPROJECT.split("[project.optional-", 1)[1], re.MULTILINE)
    )
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    for path in [ROOT / "pyproject.toml", *pages, *(ROOT / "clnp").rglob("*.py")]:
        assert extras_named(path.read_text()) <= extras, path


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel that is built from it, with this torch."""
    out = tmp_path_factory.mktemp("dist")
    environment = {**os.environ, "CLNP_BUILD_CUDA": "0", "CLNP_REQUIRE_BUILD": "1"}

    def run(what: str, folder: Path) -> None:
        command = [sys.executable, "-c", BUILD, what, str(out)]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)

    run("build_sdist", ROOT)
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        archive.extractall(out, filter="data")
    run("build_wheel", next(path for path in out.iterdir() if path.is_dir()))
    return out


@LONG
def test_wheel(archives: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    assert re.fullmatch(r"clnp-[\w.]+-py3-none-(many)?linux\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    assert "clnp_kernels/_cpu.abi3.so" in names
    assert {"clnp/py.typed", "clnp_kernels/py.typed", "clnp/data/digits.npz"} <= set(names)
    here = {name for name in tracked() if re.match(r"clnp(_kernels)?/.*\.py$", name)}
    assert here <= set(names)
    assert not any(name.startswith(("tests/", "benchmarks/", "docs/")) for name in names)


@LONG
def test_the_library_knows_no_python(archives: Path, tmp_path: Path) -> None:
    """No symbol of Python's own, so the tag py3-none is true."""
    (wheel,) = archives.glob("*.whl")
    library = zipfile.ZipFile(wheel).extract("clnp_kernels/_cpu.abi3.so", tmp_path)
    symbols = Path(library).read_bytes()
    assert not re.search(rb"\0_?Py[A-Z]\w+\0", symbols)


@LONG
def test_source_archive(archives: Path) -> None:
    (folder,) = (path for path in archives.iterdir() if path.is_dir())
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert {n for n in tracked() if not n.startswith(NOT_RELEASED)} <= names
