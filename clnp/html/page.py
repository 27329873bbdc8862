"""Self-contained HTML pages: templates that escape everything, and how numbers are written."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..objectives.shown import MISSING
from .text import number, spread

PAGE = "report.html"
STEPS = 20  # of the colours of a heat map, .h0 to .h20 in style.css


def render(template: str, **context: Any) -> str:
    """The page of a template. Every value is escaped; the page may load and run nothing, and takes
    its style from its own style sheet only (Content-Security-Policy).
    """
    environment = _environment()
    style = environment.loader.get_source(environment, "style.css")[0]  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(style=style, policy=policy, **context)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("clnp.html", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "number": number,
        "spread": spread,
        "setting": setting,
        "digits": lambda value, form: MISSING if value is None else format(value, form),
    }
    return environment


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction in per cent; a dash where there is none."""
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def setting(value: Any) -> str:
    """A setting as people write it."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {setting(v)}" for k, v in value.items()) or MISSING
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(v) for v in value) or MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return MISSING if value is None else value if isinstance(value, str) else json.dumps(value)


def heat(value: float, low: float, high: float) -> str:
    """The CSS class of a cell of a heat map; none for NaN."""
    if math.isnan(value):
        return "none"
    share = 1.0 if high <= low else (value - low) / (high - low)
    return f"h{round(STEPS * min(max(share, 0.0), 1.0))}"
