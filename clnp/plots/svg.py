"""Figures as SVG images that adapt to light and dark themes."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Colours in matplotlib -> colours in the file, which depend on the theme.
INK = "#0a0b0c"
THEMED = {
    INK: "currentColor",
    "#000000": "currentColor",
    "#333333": "currentColor",
    "#bbbbbb": "var(--rule)",
    "#ececec": "var(--free)",
    "#0072b2": "var(--blue)",
}
THEME = (
    "svg{color:#1f2328;--rule:#c4cad1;--free:#e6e9ec;--blue:#0072b2}"
    "@media(prefers-color-scheme:dark){svg{color:#e6e8eb;--rule:#4a525c;--free:#363d46;--blue:#3b9ddd}}"
)
STYLE: dict[Any, Any] = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    # Outlines of letters look the same everywhere; with a fixed salt, ids depend on content only.
    "svg.fonttype": "path",
    "svg.hashsalt": "clnp",
}
PIXELS = 96  # per inch


@dataclass(frozen=True)
class Picture:
    """An image for a page.

    Attributes:
        source: `data:` address with the content.
        width, height: pixels.
        alt: description in words.
    """

    source: str
    width: int
    height: int
    alt: str


def picture(draw: Callable[[], Figure], alt: str) -> Picture:
    """Draw a figure as an SVG with a transparent background.

    Browsers don't run scripts in images. The same numbers give the same bytes.

    Arguments:
        draw: makes the figure.
        alt: description in words.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = draw()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    width, height = figure.get_size_inches() * PIXELS
    encoded = base64.b64encode(_themed(buffer.getvalue()).encode()).decode()
    return Picture(f"data:image/svg+xml;base64,{encoded}", round(width), round(height), alt)


def _themed(text: str) -> str:
    pattern = re.compile("|".join(THEMED), re.IGNORECASE)
    text = pattern.sub(lambda match: THEMED[match[0].lower()], text)
    return re.sub(r"(<svg\b[^>]*>)", rf"\1<style>{THEME}</style>", text, count=1)
