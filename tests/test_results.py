"""The tables of README.md and docs/ are those of the committed results, and the results hold what
the text claims of them.
"""

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pages import __main__ as pages
from benchmarks.pages.markdown import BLOCK, filled
from benchmarks.pages.reproduced import over_seeds
from benchmarks.reproduce import __main__ as reproduce

REPRODUCED = pages.RESULTS / "reproduce"
IDS: dict[str, Any] = {"ids": lambda path: path.name}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("page", pages.pages(), **IDS)
def test_tables_are_those_of_the_results(page: Path) -> None:
    assert pages.text(page) == page.read_text(), "run python -m benchmarks.pages"


def test_every_table_is_on_one_page() -> None:
    found = [b[1] for page in pages.pages() for b in BLOCK.finditer(page.read_text())]
    assert sorted(found) == sorted(pages.BLOCKS)
    assert set(reproduce.EXPERIMENTS) <= set(found)
    marks = [m for page in pages.pages() for m in re.findall(r"<!-- (\S+): end", page.read_text())]
    assert sorted(marks) == sorted(found)


def test_a_changed_table_is_noticed() -> None:
    text = "before\n<!-- one: begin -->\n\nold\n\n<!-- one: end -->\nafter\n"
    assert filled(text, lambda name: f"new {name}") == text.replace("old", "new one")
    with pytest.raises(KeyError, match="unknown"):
        filled(text.replace("one", "unknown"), lambda name: pages.BLOCKS[name]())


@pytest.mark.parametrize("file", sorted(REPRODUCED.rglob("runs.csv")), ids=lambda p: p.parent.name)
def test_clnp_forgets_nothing(file: Path) -> None:
    """Every certificate is whole, backward transfer is exactly zero."""
    for row in rows(file):
        if any(value for key, value in row.items() if key.startswith("used_")):
            assert row["identical"] == row["tasks"], row["contender"]
            assert float(row["bwt"]) == 0, row["contender"]


def test_what_is_said_of_split_cifar() -> None:
    folder = REPRODUCED / "fig4"
    ours, si, alone = (over_seeds(folder, name) for name in ("CLNP, limited", "SI", "scratch"))
    assert all(a > b for a, b in zip(ours, si, strict=True))
    assert [a > b for a, b in zip(ours, alone, strict=True)] == [False] + 5 * [True]
    so_far = [over_seeds(folder, name, "mean")[1:] for name in ("CLNP, limited", "SI")]
    assert all(a > b for a, b in zip(*so_far, strict=True))
    last = {
        name: [
            float(r["test"])
            for r in rows(folder / "tasks.csv")
            if (r["contender"], r["task"]) == (name, "5")
        ]
        for name in ("CLNP, limited", "SI")
    }
    ahead = [a > b for a, b in zip(*last.values(), strict=True)]
    assert sorted(ahead) == [False, True]


def test_what_is_said_of_capacity() -> None:
    more = {
        row["recipe"]: 100 * (float(row["acc"]) - float(row["base"]))
        for row in rows(REPRODUCED / "capacity" / "equal.csv")
    }
    runs = {
        row["contender"]: (float(row["weights"]), float(row["acc"]))
        for row in rows(REPRODUCED / "capacity" / "runs.csv")
    }
    best, worst = "twice the epochs", "initial scale 0.05"
    assert max(more, key=lambda name: more[name]) == best
    assert min(more, key=lambda name: more[name]) == worst
    assert all(abs(gain) < 0.15 for name, gain in more.items() if name not in (best, worst))
    most, least = runs["base, m = 0.25 %"], runs["base, m = 2 %"]
    for name in ("ranked by activity", "layer by layer", "no fine-tuning"):
        assert runs[name][0] > most[0]
        assert runs[name][1] < most[1]
    assert all(runs[name][0] < least[0] for name in ("structured SDP", "narrow"))
    assert runs["one round"][0] > most[0]


def test_clnp_and_packnet_forget_nothing_in_the_comparison() -> None:
    forgetting = {
        row["method"]: float(row["forgetting_mean"]) for row in rows(pages.COMPARED / "methods.csv")
    }
    assert [name for name, points in forgetting.items() if points == 0] == [
        "clnp",
        "packnet",
        "scratch",
    ]
