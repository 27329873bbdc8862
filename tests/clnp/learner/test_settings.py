"""The rows of the settings: one for each, and everything that comes from them."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clnp
from clnp.errors import ConfigError
from clnp.learner.settings import SettingsGiven, rows, settings_table
from clnp.methods import MethodSettings
from clnp.ranges import choice, number, whole

CLASSES = (clnp.Settings, clnp.FineTune, MethodSettings)


@pytest.mark.parametrize("settings", CLASSES)
def test_every_setting_is_explained_and_has_a_good_default(settings: type) -> None:
    table = settings_table(settings).splitlines()
    found = rows(settings)
    assert len(table) == 2 + len(found)
    for (name, row), line in zip(found.items(), table[2:], strict=True):
        assert row.meaning
        assert row.values.holds(getattr(settings(), name))
        assert line.startswith(f"| `{name}` | `{getattr(settings(), name)!r}` | ")
        assert row.meaning.replace("|", r"\|") in line
        assert f"\n        {name}: {row.meaning[:20]}" in (settings.__doc__ or "")


@pytest.mark.parametrize("settings", CLASSES)
def test_the_table_is_a_table(settings: type) -> None:
    lines = settings_table(settings).splitlines()
    assert {line.replace(r"\|", "").count("|") for line in lines} == {7}


def test_the_keyword_arguments_of_a_learner_are_the_settings() -> None:
    hints = typing.get_type_hints(SettingsGiven)
    assert set(hints) == set(rows(clnp.Settings))
    for name, row in rows(clnp.Settings).items():
        if typing.get_origin(hints[name]) is typing.Literal:
            assert set(typing.get_args(hints[name])) == set(row.values.names), name


@pytest.mark.parametrize(
    ("settings", "name"),
    [(s, name) for s in CLASSES for name, row in rows(s).items() if row.values.kind],
)
@pytest.mark.parametrize("value", [None, "nothing", -1, float("nan"), [1]])
def test_a_value_out_of_range_is_refused_by_name(settings: Any, name: str, value: Any) -> None:
    if settings is clnp.FineTune:
        with pytest.raises(ConfigError, match=f"^fine_tune {name}: expected .*, got "):
            clnp.Settings(fine_tune=clnp.FineTune(**{name: value}))
    else:
        with pytest.raises(ConfigError, match=f"^{name}: expected .*, got "):
            settings(**{name: value})


@given(st.integers() | st.floats() | st.booleans() | st.text(max_size=2), st.integers(-9, 9))
def test_ranges(value: Any, low: int) -> None:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    integer = real and isinstance(value, int)
    finite = real and abs(value) < float("inf")
    for range_, holds in (
        (whole(low), integer and value >= low),
        (whole(low, low + 2), integer and low <= value <= low + 2),
        (number(low), finite and value >= low),
        (number(low, above=True), finite and value > low),
        (number(low, low + 1, below=True), finite and low <= value < low + 1),
        (choice("ab"), value in ("a", "b")),
    ):
        assert range_.holds(value) is holds, range_.expected
