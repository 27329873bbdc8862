"""configurations.json: settings and machines of the runs in the CSV files beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from .config import SHARED, Config
from .options import CLNP_ONLY
from .run_folder import RunFolder, write_json

FILE = "configurations.json"
FORMAT = "clnp-configurations"
# Fields of `Config` that stand elsewhere in the file.
ELSEWHERE = ("seeds", "method", "options")


def resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that a run takes, as JSON has them, but for method and seeds.

    Arguments:
        config: of `Config.as_dict`; fields that came later may be missing.

    Returns:
        setting -> value. Another method than CLNP has the settings of all methods, "options" with
        the value of each of its own, and none of CLNP's.

    Raises:
        ConfigError: options that the method doesn't have, or a value out of range.
    """
    later = {
        field.name: field.default
        for field in dataclasses.fields(Config)
        if field.default is not dataclasses.MISSING
    }
    values = {**later, **config}
    name, given = values["method"], dict(values["options"])
    settings = {key: value for key, value in values.items() if key not in ELSEWHERE}
    if name == "clnp":
        return _plain(settings)
    # Imported late: reading a configuration of CLNP needs no method.
    from ..methods.registry import resolve

    settings = {key: value for key, value in settings.items() if key not in CLNP_ONLY}
    shared = {key: settings[key] for key in SHARED if key != "device"}
    common, own = resolve(name, {**shared, **given})
    common.pop("seed")
    return _plain({**settings, **common, "options": own})


def of_runs(done: Iterable[tuple[RunFolder, Mapping[str, Any]]]) -> dict[str, Any]:
    """Configurations of finished runs as `write` writes them.

    Returns:
        {"format", "methods": {method: [{"seeds", "settings", "environment"}, ...]}}: one entry for
        all seeds of a method, or several where settings, versions or hardware differ.

    Raises:
        RunError: a folder's environment.json is damaged.
    """
    methods: dict[str, list[dict[str, Any]]] = {}
    for folder, metrics in done:
        about = {"settings": resolved(metrics["config"]), "environment": folder.read_environment()}
        entries = methods.setdefault(metrics["config"].get("method", "clnp"), [])
        for entry in entries:
            if {key: entry[key] for key in about} == about:
                entry["seeds"] += metrics["config"]["seeds"]
                break
        else:
            entries.append({"seeds": [*metrics["config"]["seeds"]], **about})
    return {"format": FORMAT, "methods": methods}


def write(folder: RunFolder, done: Iterable[tuple[RunFolder, Mapping[str, Any]]]) -> None:
    """Writes configurations.json of the runs of `of_runs`. Raises OSError, RunError."""
    write_json(folder.path / FILE, of_runs(done))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
