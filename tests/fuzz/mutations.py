"""JSON that is almost right: what a damaged or hostile file holds."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, -1, 1, 7, 2**31, 2**63, 10**13, -(2**70), 0.5, 1e308, float("nan"), float("inf"))
WORDS = ("", "x", "relu", "../../x", "eval", "cpu", "cuda", "__class__.x", 'a"), 1, ("', "\n", "\0")
LEAVES = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(WORDS))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner),
    max_leaves=4,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything within a JSON value."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    found = [path] if path else []
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


@st.composite
def mutated(draw: st.DrawFn, value: Any, most: int = 3) -> Any:
    """A copy of a JSON object with one to `most` parts replaced, removed or swapped."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        places = _places(value)
        if not places:
            break
        *path, last = draw(st.sampled_from(places))
        owner = value
        for key in path:
            owner = owner[key]
        action = draw(st.sampled_from(("replace", "replace", "nudge", "remove", "move")))
        if action == "remove":
            del owner[last]
        elif action == "move":
            *other, key = draw(st.sampled_from(places))
            source = value
            for step in other:
                source = source[step]
            owner[last] = copy.deepcopy(source[key])
        elif action == "nudge" and type(owner[last]) is int:
            owner[last] += draw(st.sampled_from((-1, 1, 3)))
        else:
            owner[last] = draw(VALUES)
    return value
