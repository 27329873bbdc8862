"""The report's page: whole, self-contained, true to the numbers, and deaf to what names say."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from clnp import methods, plots
from clnp.cli import pages as html_report
from clnp.cli import run_folder
from clnp.cli.config import Config
from clnp.cli.run_folder import RunFolder
from clnp.data import Task
from clnp.errors import ConfigError
from clnp.html import page, tables
from clnp.learner.learner import Learner
from clnp.learner.settings import Settings, rows
from clnp.plots import svg
from tests.clnp.commands import clnp, finished_run
from tests.clnp.plots.test_plots import METHODS, ROWS, numbers

VOID = {"meta", "img", "link", "br", "input", "base"}
HOSTILE = "'\"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}$\\frac</style>"


class Reader(HTMLParser):
    """Tags, attributes and text of a page; fails where tags don't match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def images(self) -> list[str]:
        """The SVGs inside."""
        head = "data:image/svg+xml;base64,"
        sources = [value for name, value in self.attributes if name == "src"]
        assert all(source.startswith(head) for source in sources)
        return [base64.b64decode(source.removeprefix(head)).decode() for source in sources]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two tiny tasks; tests must not change it."""
    return finished_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def text(finished):
    """Its page."""
    return html_report.run_page(RunFolder(finished))


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "digits"))


def several(finished: Path, root: Path, seeds: int = 2) -> Path:
    """A run of several seeds, put together from one."""
    config, places = RunFolder(finished).read_config()
    values = {**config.as_dict(), "seeds": list(range(seeds))}
    RunFolder(root).write_config(Config.from_dict(values), places)
    for seed in range(seeds):
        shutil.copytree(finished, root / f"seed-{seed}")
        path = root / f"seed-{seed}" / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["config"]["seeds"] = [seed]
        metrics["acc"] -= 0.01 * seed
        run_folder.write_json(path, metrics)
    return root


def comparison(finished: Path, root: Path, names: tuple[str, ...] = ("clnp", "si")) -> Path:
    """A comparison, put together from one run."""
    for name in names:
        shutil.copytree(finished, root / name)
    run_folder.write_json(root / "compare.json", {"format": "clnp-compare", "methods": list(names)})
    return root


def check_alone(text: str) -> Reader:
    """Nothing is loaded, nothing can run, only the page's own style sheet counts."""
    found = Reader(text)
    assert "script" not in found.tags
    assert "link" not in found.tags
    names = {name for name, _ in found.attributes}
    assert not any(name.startswith("on") or name == "style" for name in names)
    policy = _policy(found)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert not re.search(r"(https?:)?//|url\(|@import", style[1])
    for image in found.images():
        tree = ElementTree.fromstring(image)
        kinds = {element.tag.rpartition("}")[2] for element in tree.iter()}
        assert not kinds & {"script", "foreignObject", "a"}
        links = [v for e in tree.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(link.startswith(("#", "data:image/png")) for link in links)
    return found


def _policy(found: Reader) -> str:
    return next(value for _, value in found.attributes if value.startswith("default-src"))


def test_report_writes_the_page_of_a_run(run, text, capsys):
    code, out, _ = clnp(capsys, "report", run)
    assert code == 0
    assert out.endswith(f"page: {run / 'report.html'}\n")
    assert (run / "report.html").read_text() == text  # the same numbers, the same page
    found = check_alone(text)
    assert len(found.images()) == 4  # accuracy, without the task, capacity, training
    assert found.tags.count("h1") == 1
    metrics = RunFolder(run).read_metrics()
    shown = " ".join(" ".join(found.text).split())
    R = metrics["accuracy_matrix"]
    for i in range(2):
        for j in range(i + 1):
            assert f"{100 * R[i][j]:.2f}" in shown
    for title in ("Capacity", "Forgetting and certificate", "Cost", "Settings", "Versions"):
        assert title in shown
    assert "2 of 2" in shown
    for report in metrics["reports"]:
        assert report["name"] in shown
        for counts in report["capacity"].values():
            assert f"({counts['new']} + {counts['reused']})" in shown
    both = metrics["inferred"]["entropy"]["class_incremental"]
    assert f"{100 * both:.2f}" in shown
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"] in shown
    assert str(run.parent) not in text


def test_names_are_shown_as_they_are(run, text, tmp_path):
    """The page has the same elements and no others for any text in the files of a run."""
    before = Reader(text)
    for name in ("metrics.json", "environment.json"):
        run_folder.write_json(run / name, hostile(json.loads((run / name).read_text())))
    for name in ("timing.csv", "cost.csv"):
        quoted = HOSTILE.replace('"', '""')
        text = (run / name).read_text()
        (run / name).write_text(text.replace("digits-0", f'"{quoted}"'))
    nasty = run.rename(tmp_path / "<b onclick=alert(1)>")
    text = html_report.run_page(RunFolder(nasty))
    after = check_alone(text)
    assert after.tags == before.tags
    escaped = html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")
    assert text.count(escaped) > 9


def hostile(value: Any) -> Any:
    """All names replaced: strings, and the names of layers."""
    if isinstance(value, dict):
        return {k + HOSTILE if k.isdigit() else k: hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return HOSTILE if isinstance(value, str) else value


def test_the_page_of_several_seeds(finished, tmp_path, capsys):
    root = several(finished, tmp_path / "seeds")
    (root / "seed-1" / "report.html").touch()
    assert clnp(capsys, "report", root)[0] == 0
    found = check_alone((root / "report.html").read_text())
    links = [value for name, value in found.attributes if name == "href"]
    assert links == ["seed-1/report.html"]
    acc = RunFolder(finished).read_metrics()["acc"]
    shown = " ".join(" ".join(found.text).split())
    assert f"{acc - 0.005:.4f} ± {0.01 / 2**0.5:.4f}" in shown
    assert len(found.images()) == 2


def test_the_page_of_a_comparison(finished, tmp_path, capsys):
    root = comparison(finished, tmp_path / "both")
    (root / "si" / "report.html").touch()
    assert clnp(capsys, "report", root)[0] == 0
    found = check_alone((root / "report.html").read_text())
    links = [value for name, value in found.attributes if name == "href"]
    assert links == ["si/report.html"]
    assert f"{100 * RunFolder(finished).read_metrics()['acc']:.2f}" in " ".join(found.text)
    assert len(found.images()) == 2


def test_one_page_elsewhere(finished, tmp_path, capsys):
    root = several(finished, tmp_path / "seeds")
    target = tmp_path / "page.html"
    (root / "seed-0" / "report.html").touch()
    assert clnp(capsys, "report", root, "--html", target)[0] == 0
    assert not (root / "report.html").exists()
    assert "href" not in {name for name, _ in check_alone(target.read_text()).attributes}


def test_a_run_of_an_earlier_version(run):
    """Without costs, times, environment and inferred tasks."""
    metrics = json.loads((run / "metrics.json").read_text())
    for key in ("cost", "inferred"):
        del metrics[key]
    for report in metrics["reports"]:
        del report["inferred"]
    run_folder.write_json(run / "metrics.json", metrics)
    for name in ("cost.csv", "timing.csv", "environment.json"):
        (run / name).unlink()
    shown = " ".join(check_alone(html_report.run_page(RunFolder(run))).text)
    assert "Capacity" in shown
    for title in ("Cost", "Without task ids", "Versions"):
        assert title not in shown


def test_many_tasks_and_layers():
    R, capacities, reuses, history = numbers(25)
    many = [{f"layer{k}": c["0"] for k in range(9)} for c in capacities]
    told = [{f"layer{k}": r["0"] for k in range(9)} for r in reuses]
    metrics = {
        "accuracy_matrix": R.tolist(),
        "mean_accuracies": [0.9] * 25,
        "reports": [
            {"name": f"t{i}", "capacity": c, "reuse": r, "history": h}
            for i, (c, r, h) in enumerate(zip(many, told, history, strict=True))
        ],
    }
    heatmap = tables.accuracies(metrics)
    assert [len(row) for row in heatmap.rows] == [25] * 25
    assert heatmap.rows[0][1] == tables.Cell("", "none")
    assert heatmap.foot[:2] == ["0", "0"]
    maps = tables.reuse(metrics)
    assert [m.title for m in maps] == [f"layer{k}" for k in range(9)]
    assert maps[0].rows[3][3] == tables.Cell("3", "h20")
    assert maps[0].rows[3][0] == tables.Cell("1", "h7")
    table = tables.channels(metrics)
    assert len(table.rows) == 9
    assert table.rows[0][1:] == ["100", "75 = 75.0 % (3 + 24)"]


def test_figures_follow_the_theme_and_are_the_same_bytes():
    draw = lambda: plots.capacity([numbers(3)[1]])  # noqa: E731
    one, two = (svg.picture(draw, "words") for _ in range(2))
    assert one == two
    text = base64.b64decode(one.source.partition(",")[2]).decode()
    assert "prefers-color-scheme" in text
    assert "currentColor" in text
    assert "var(--free)" in text
    for colour in svg.THEMED:
        assert colour not in text.replace(svg.THEME, "").lower()
    width, height = plots.capacity([numbers(3)[1]]).get_size_inches()
    assert (one.width, one.height) == (round(96 * width), round(96 * height))


def test_names_with_dollars_are_no_formulas():
    names = {name: "$" + name for name in METHODS}
    rows = [{**row, "method": names[row["method"]]} for row in ROWS]
    svg.picture(lambda: plots.accuracy_against_cost(rows), "")
    R = numbers(3)[0]
    svg.picture(lambda: plots.mean_accuracies({HOSTILE: [R]}), "")


def test_how_values_are_written():
    assert page.percent(0.98765) == "98.77"
    assert page.percent(None) == page.percent(float("nan")) == page.MISSING
    assert page.setting({"a": [1e-5, True], "b": None}) == f"a 1e-05, yes, b {page.MISSING}"
    assert page.setting([]) == page.MISSING
    assert [page.heat(v, 0.9, 1.0) for v in (0.5, 0.9, 0.95, 1.0)] == ["h0", "h0", "h10", "h20"]
    assert page.heat(float("nan"), 0, 1) == "none"
    assert page.heat(1.0, 1.0, 1.0) == "h20"


def test_the_page_of_a_learner_alone(finished, text, tmp_path):
    """The numbers of its run's page, from the learner in memory."""
    learner = Learner.load(finished / "checkpoint.safetensors")
    assert learner.report(tmp_path) == tmp_path / "report.html"
    file = learner.report(tmp_path / "own.html")
    found = check_alone(file.read_text())
    assert file.read_text() == (tmp_path / "report.html").read_text()
    whole = Reader(text)
    # But for the title, the settings of the experiment, and the versions.
    numbers = [page.text[page.text.index("Accuracy") :] for page in (found, whole)]
    own, run = (part[: part.index("Settings")] for part in numbers)
    assert own == run
    assert found.images() == whole.images()
    shown = " ".join(found.text)
    for name in rows(Settings):
        assert f" {name} " in shown, name


def test_the_page_of_a_method(tmp_path):
    net = torch.nn.Linear(4, 3)
    learner = methods.make("finetune", net, torch.zeros(1, 4), epochs=1)
    with pytest.raises(ConfigError, match="at least one learned task, got none"):
        learner.report(tmp_path / "a.html")
    x, y = torch.rand(12, 4), torch.arange(12) % 3
    learner.learn(Task("first", (x, y), (x, y), (x, y)))
    page = learner.report(tmp_path / "a.html").read_text()
    shown = " ".join(check_alone(page).text)
    assert "finetune: 1 task" in shown
    assert "1 first" in " ".join(shown.split())
    assert "This method gives no certificate." in " ".join(shown.split())


def test_figures_fit_a_narrow_screen(text):
    """No rule makes a figure wider than the page, and none is inside what scrolls."""
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    rules = dict(re.findall(r"([^{}]+)\{([^{}]*)\}", style[1]))
    (image,) = (rule for names, rule in rules.items() if names.strip() == "img")
    assert "max-width: 100%" in image
    assert "height: auto" in image
    wide = [names for names, rule in rules.items() if re.search(r"min-width: *[1-9]", rule)]
    assert not any(re.search(r"\b(img|figure|main|body)\b", names) for names in wide)
    assert not re.search(r"<figure>\s*<div", text)
