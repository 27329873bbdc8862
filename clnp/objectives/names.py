"""Names of losses and metrics in settings, files and reports."""

from __future__ import annotations

from typing import Any


def name_of(function: Any) -> str:
    """ "module.qualified name" of a function or of an object that can be called."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def canonical(name: str) -> str:
    """A name in small letters with spaces, as names are compared: "Mean_IoU" -> "mean iou"."""
    return name.lower().replace("_", " ").replace("-", " ")
