"""A few lines of SVG: boxes, texts and arrows in the colours of a light or a dark page."""

from __future__ import annotations

from html import escape
from pathlib import Path

# class -> (light, dark); frozen, free and new channels also differ in brightness, for grey prints
COLOURS = {
    "page": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "faint": ("#6e7781", "#9198a1"),
    "frozen": ("#1f6fb4", "#3a8bd0"),
    "older": ("#9cc4e8", "#1d4468"),
    "free": ("#f0a830", "#d9962a"),
    "label": ("#1f2328", "#1f2328"),
    "none": ("#ffffff", "#0d1117"),
}


def _rules(shade: int) -> str:
    rules = []
    for name, both in COLOURS.items():
        rules.append(f".{name}{{fill:{both[shade]}}}")
    ink, faint = COLOURS["ink"][shade], COLOURS["faint"][shade]
    rules.append(f".line{{stroke:{faint}}} .arrow{{stroke:{ink};fill:none}} .tip{{fill:{ink}}}")
    return "".join(rules)


STYLE = (
    "<style>text{font-family:system-ui,sans-serif;font-size:13px}"
    ".small{font-size:11px}.title{font-weight:600}.code{font-family:ui-monospace,monospace}"
    ".line{stroke-width:1}.arrow{stroke-width:1.5}"
    f"{_rules(0)}@media (prefers-color-scheme:dark){{{_rules(1)}}}</style>"
)
DEFINITIONS = (
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><line x2="0" y2="6" class="line"/></pattern>'
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" class="tip"/></marker></defs>'
)


class Drawing:
    """An SVG of a size in pixels, with a title for those who can't see it."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img"><title>{escape(title)}</title>',
            STYLE,
            DEFINITIONS,
            f'<rect width="{width}" height="{height}" rx="8" class="page"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """A rectangle; the kind is a colour, or "hatch" for what is not there."""
        area = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        fill = 'fill="url(#hatch)"' if kind == "hatch" else ""
        self.parts.append(f'<rect {area} {fill} class="line {kind}"/>')

    def text(
        self, x: float, y: float, words: str, kind: str = "ink", anchor: str = "start"
    ) -> None:
        """A line of text at its baseline."""
        where = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
        self.parts.append(f'<text {where} class="{kind}">{escape(words)}</text>')

    def lines(self, x: float, y: float, text: str, anchor: str = "middle") -> None:
        """Several small lines below each other."""
        for i, line in enumerate(text.split("\n")):
            self.text(x, y + 15 * i, line, "small faint", anchor)

    def arrow(self, path: str) -> None:
        """A line with a tip at its end, from an SVG path."""
        self.parts.append(f'<path d="{path}" class="arrow" marker-end="url(#tip)"/>')

    def save(self, path: Path) -> None:
        """Writes the file."""
        path.write_text("\n".join([*self.parts, "</svg>"]) + "\n")
