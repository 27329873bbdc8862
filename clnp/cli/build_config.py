"""From the words of the command line to the settings of a run."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..learner.budget import AUTO
from ..learner.settings import check_objective
from ..models.own_file import absolute
from ..objectives.objective import metric_of
from ..pruning.margin import check_margin
from . import config as configs
from .config import SHARED, Config, option
from .defaults import AUTHORS, DEFAULTS, METHODS, NAMED, NETS, SOME, SPLITS, STREAMS, WITH_NET
from .options import CLNP_ONLY, NO_METHOD, SETTINGS
from .run_folder import Places, RunFolder

LIMITS = ("growth", "first_growth")
NO_SET = "--set applies to the other methods only; clnp's settings have options of their own"
# The settings that decide for how many epochs CLNP trains.
EPOCHS = ("epochs", "fine_tune_epochs", "fine_tune_rounds")


def out_folder(options: argparse.Namespace) -> RunFolder:
    """The folder of a run or a comparison."""
    name = options.stream or STREAMS[0]
    default = Path("runs") / (name if options.command == "run" else f"compare-{name}")
    return RunFolder(options.out or default)


def compared_methods(text: str) -> list[str]:
    """ "clnp,si" -> ["clnp", "si"], as --methods has them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def settings(
    options: argparse.Namespace, folder: str | os.PathLike[str], method: str | None = None
) -> tuple[Config, Places]:
    """The settings of a run: the given options over the resumed run's settings, or else over the
    experiment's defaults.

    Arguments:
        options: of `parse`.
        folder: of the run.
        method: of a comparison; what is given for CLNP only doesn't count for the others. None
            takes --method, or the resumed run's.

    Raises:
        ConfigError: an option out of range, or one that doesn't go with the experiment or method.
    """
    given = _given(options)
    places, run = Places.of(options), RunFolder(folder)
    if options.resume and run.is_run:
        old, old_places = run.read_config()
        base: dict[str, Any] = {name: getattr(old, name) for name in old.__dataclass_fields__}
        places = places.over(old_places)
    else:
        stream = options.stream or STREAMS[0]
        name = method or options.method or "clnp"
        base = experiment_defaults(stream, name, given, len(options.paths))
        # From here on the number of threads, which decides the last bits, is that of the run.
        base["threads"] = max(1, base["threads"] // places.workers)
    if places.pretrained is not None:
        given["pretrained"] = _digest(Path(places.pretrained))
    name = method or options.method or base.get("method", "clnp")
    if name == "clnp":
        _check_fine_tuning(base, given)
    else:
        _check_name(name)
        if options.command == "compare":
            given = _same_epochs(base["stream"], given)
        _check_of_method(options, method, name, given)
        given = {key: value for key, value in given.items() if key not in CLNP_ONLY}
    _check_some(base["stream"], given, options.paths)
    chosen = _set(options.set, name, lenient=method is not None)
    # Another method than that of the resumed run is refused later, and has none of its options.
    before = base.get("options", ()) if base.get("method", name) == name else ()
    given["options"] = tuple(sorted((dict(before) | chosen).items()))
    if "net" in given:
        given["net"] = NETS.get(base["stream"], {}).get(given["net"], absolute(given["net"]))
    config = Config(**{**base, **given, "method": name})
    configs.validate(config)
    if name == "clnp":
        _check_margin(config)
    else:
        _check_options(config)
    return config, places


def names_a_run(options: argparse.Namespace) -> bool:
    """Return whether the options describe a run, beyond its folder and places."""
    return bool(options.method or options.set or _given(options))


def _given(options: argparse.Namespace) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in (*SETTINGS, "device")}
    given = {name: value for name, value in values.items() if value is not None}
    given |= _seeds(options) | _grid(options.grid)
    return given if options.stream is None else {**given, "stream": options.stream}


def _check_name(method: str) -> None:
    from ..methods import METHODS as KNOWN

    if method not in KNOWN:
        raise ConfigError(
            f"--method: expected one of {', '.join(('clnp', *KNOWN))}, got {method!r}"
        )


def _check_options(config: Config) -> None:
    from ..methods.registry import resolve

    given = config.method_arguments()
    try:
        resolve(config.method, {key: given[key] for key in given if key != "device"})
    except ConfigError as error:
        raise ConfigError(f"--set: {error}" if config.options else str(error)) from None


def _check_margin(config: Config) -> None:
    try:
        metric = check_objective(config.loss_setting, config.metric) or metric_of("accuracy")
        check_margin(config.margin, metric)
    except ConfigError as error:
        raise ConfigError(f"--{error}") from None


def _check_fine_tuning(base: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    names = [name for name in given if name.startswith("fine_tune_")]
    epochs = given.get("fine_tune_epochs", base["fine_tune_epochs"])
    without = not epochs and "fine_tune_epochs" not in given
    if set(names) - {"fine_tune_epochs"} and (without or epochs == AUTO):
        raise ConfigError(
            f"{option(names[0])} applies to runs with epochs of fine-tuning only (got "
            f"--fine-tune-epochs {epochs}); ask for it with --fine-tune-epochs N"
        )


def experiment_defaults(
    stream: str, method: str, given: Mapping[str, Any] | None = None, paths: int = 1
) -> dict[str, Any]:
    """The settings of an experiment beside those given: its defaults, as the network, the split and
    the method change them.
    """
    given = given or {}
    base = configs.defaults(stream)
    net = given.get("net", base["net"])
    if net != base["net"]:
        base |= {"width": None, "depth": None, "dropout": None, "init": None}
        # Numbers are those of the experiment's own network.
        base |= {name: (AUTO,) for name in LIMITS if base.get(name)}
        base |= WITH_NET.get((stream, net), {})
        if net == "mlp":
            base |= {name: DEFAULTS["arrays"][name] for name in ("width", "depth", "dropout")}
    if SPLITS.get(given.get("split", "")):
        base["tasks"] = SPLITS[given["split"]]
    if stream in NAMED:
        base["tasks"] = max(paths, 1)
    if "depth" in given:
        base["l1"] = _stretched(base["l1"], given["depth"])
        for name in LIMITS:
            base[name] = _deepened(base.get(name, ()), given["depth"])
    if given.get("adopt") or given.get("pretrained"):
        base["first_growth"] = ()  # a trained network needs all its channels
    return base if method == "clnp" else base | _base_of_method(method, stream, base, given)


def _base_of_method(
    method: str, stream: str, base: dict[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Changes to an experiment's defaults for another method than CLNP."""
    # Imported late: --help of an experiment needs no method.
    from ..methods import METHODS as KNOWN

    # The same epochs for all: those of fine-tuning go to training.
    changed: dict[str, Any] = {
        "epochs": _all_epochs(base),
        "fine_tune_epochs": 0,
        "fine_tune_rounds": 1,
    }
    changed |= {"schedule": "constant", **METHODS.get(stream, {})}
    options = dict(AUTHORS.get((stream, method), {}))
    if method in KNOWN:
        # What the method decides differently by default, where those are settings of a run.
        fixed = KNOWN[method].cls.fixed
        changed |= {name: fixed[name] for name in SHARED if name in fixed}
        if "tasks" in KNOWN[method].options:
            options["tasks"] = given.get("tasks", base["tasks"])
    if given.get("net", base["net"]) != base["net"]:
        changed.pop("dropout", None)
    return {**changed, "options": tuple(sorted(options.items()))}


def _check_of_method(
    options: argparse.Namespace, compared: str | None, name: str, given: Mapping[str, Any]
) -> None:
    """Refuses settings that only CLNP has where they serve no method."""
    useless = [key for key in NO_METHOD if key in given]
    how = f"--method {name}"
    if options.command == "compare":
        # Epochs of fine-tuning count for every compared method.
        useless = [key for key in useless if key not in EPOCHS]
        how = f"--methods {options.methods}"
        compared = None if "clnp" not in compared_methods(options.methods) else compared
    if useless and compared is None:
        names = ", ".join(map(option, useless))
        verb = "apply" if len(useless) > 1 else "applies"
        raise ConfigError(f"{names} {verb} to --method clnp only (got {how})")


def _same_epochs(stream: str, given: dict[str, Any]) -> dict[str, Any]:
    """Compared methods train as long as CLNP does, whose epochs of fine-tuning come on top of those
    of training.
    """
    if not any(name in given for name in EPOCHS):
        return given
    return {**given, "epochs": _all_epochs({**DEFAULTS[stream], **given})}


def _all_epochs(settings: Mapping[str, Any]) -> int:
    rounds, tuned = settings.get("fine_tune_rounds", 1), settings["fine_tune_epochs"]
    # Those of auto are within the epochs.
    return int(settings["epochs"] + (0 if tuned == AUTO else rounds * tuned))


def _check_some(stream: str, given: dict[str, Any], paths: Sequence[str]) -> None:
    for name in SOME:
        if name in given and name not in DEFAULTS[stream]:
            users = ", ".join(s for s in STREAMS if name in DEFAULTS[s])
            raise ConfigError(f"{option(name)} applies to {users} only (got {stream})")
    if stream in NAMED and "tasks" in given:
        raise ConfigError(f"--tasks: {stream} has one task per file or folder named; leave it out")


def _seeds(options: argparse.Namespace) -> dict[str, Any]:
    if options.seeds is not None:
        if len(options.seeds) > 1:
            return {"seeds": tuple(options.seeds)}
        if not 1 <= options.seeds[0] <= 1000:
            raise ConfigError(f"--seeds: expected 1 to 1000 seeds, got {options.seeds[0]}")
        return {"seeds": tuple(range(options.seeds[0]))}
    return {} if options.seed is None else {"seeds": (options.seed,)}


def _grid(items: Sequence[str] | None) -> dict[str, Any]:
    """["l1=1e-6,1e-5:1e-5:1e-6", "lr=1e-3"] -> {"grid_l1": ((1e-6,), (1e-5, 1e-5, 1e-6)),
    "grid_lr": (1e-3,)}.
    """
    grid: dict[str, Any] = {}
    for item in items or ():
        name, equals, text = item.partition("=")
        if name not in ("l1", "lr") or not equals or f"grid_{name}" in grid:
            raise ConfigError(
                f"--grid: expected l1=LIST and lr=LIST, each at most once, got {item!r}"
            )
        try:
            points = tuple(tuple(float(v) for v in point.split(":")) for point in text.split(","))
        except ValueError:
            raise ConfigError(
                f"--grid {name}: expected numbers with commas between, got {text!r}"
            ) from None
        if name == "lr":
            if any(len(point) != 1 for point in points):
                raise ConfigError(f"--grid lr: expected one number per candidate, got {text!r}")
            grid["grid_lr"] = tuple(point[0] for point in points)
        else:
            grid["grid_l1"] = points
    return grid


def _set(items: Sequence[str] | None, method: str, lenient: bool) -> dict[str, Any]:
    """["c=0.1", "si.xi=1e-3"] -> {"c": 0.1, "xi": 0.001} for the method si; values are JSON, or
    else words. With `lenient`, what is meant for other methods is left out.
    """
    found: dict[str, Any] = {}
    for item in items or ():
        name, equals, text = item.partition("=")
        whose, dot, own = name.rpartition(".")
        if not equals or not own or (dot and not whose):
            raise ConfigError(f"--set: expected NAME=VALUE or METHOD.NAME=VALUE, got {item!r}")
        if method == "clnp" and not lenient:
            raise ConfigError(f"{NO_SET} (got {item!r})")
        if (dot and whose != method) or method == "clnp":
            if not lenient:
                raise ConfigError(f"--set: expected options of {method}, got {item!r}")
            continue
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        value = tuple(value) if isinstance(value, list) else value
        if own in found and found[own] != value:
            raise ConfigError(
                f"--set: expected one {own} of {method}, got {found[own]} and {value}"
            )
        found[own] = value
    return found


def _stretched(l1: tuple[float, ...], depth: int) -> tuple[float, ...]:
    """Default l1 for another depth: first and last stay, those between repeat the second."""
    if len(l1) < 3 or depth < 1:
        return l1
    return (l1[0], *[l1[1]] * (depth - 1), l1[-1])


def _deepened(numbers: tuple[Any, ...], depth: int) -> tuple[Any, ...]:
    """Default limits, one per hidden layer, for another depth: the last is repeated."""
    if numbers == (AUTO,):
        return numbers
    depth = max(depth, 0)
    return (numbers + numbers[-1:] * depth)[:depth]


def _digest(path: Path) -> str:
    sha = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                sha.update(piece)
        return sha.hexdigest()
    except OSError as error:
        raise ConfigError(f"--pretrained: {path} can't be read ({error})") from error
