"""Networks of a user's own Python file, named FILE.py:NAME."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ConfigError, first_line

FORM = "FILE.py:NAME, where NAME is a class or function that returns a torch.nn.Module"


def is_own_file(name: str) -> bool:
    """Return whether the name of a network is one in a Python file."""
    return name.partition(":")[0].endswith(".py")


def absolute(name: str) -> str:
    """Return the name with an absolute path, if it is one in a Python file."""
    path, colon, attribute = name.partition(":")
    return f"{Path(path).absolute()}{colon}{attribute}" if is_own_file(name) else name


def check_own_file(name: str) -> None:
    """Raise ConfigError unless the file exists and a name is given."""
    path, _, attribute = name.partition(":")
    if not attribute.isidentifier():
        raise ConfigError(f"network: expected {FORM}, got {name!r}")
    if not Path(path).is_file():
        raise ConfigError(f"network {name!r}: no such file {path}")


def make_from_file(
    name: str, classes: int, shape: tuple[int, ...], options: Mapping[str, Any]
) -> nn.Module:
    """Run a Python file, and call a class or function of it.

    It is called with those of `classes` and `shape` that it takes, by name, and with all options.

    Arguments:
        name: "FILE.py:NAME".
        classes: number of outputs.
        shape: shape of one example without the batch.
        options: further keyword arguments.

    Raises:
        ConfigError: the file can't be run, or what it makes is no module.
    """
    check_own_file(name)
    path, _, attribute = name.partition(":")
    build = getattr(_run(Path(path), name), attribute, None)
    if not callable(build):
        raise ConfigError(f"network {name!r}: expected {attribute} in the file, got no such name")
    try:
        parameters = inspect.signature(build).parameters
        given = {"classes": classes, "shape": shape}
        taken = {key: value for key, value in given.items() if key in parameters}
        made = build(**taken, **options)
    except Exception as error:
        raise ConfigError(f"network {name!r}: can't be made ({first_line(error)})") from error
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"network {name!r}: expected a torch.nn.Module, got {type(made).__name__}"
        )
    return made


def _run(path: Path, name: str) -> Any:
    """Import a file under a name of its own; modules beside it can be imported."""
    spec = importlib.util.spec_from_file_location(f"clnp_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"network {name!r}: the file fails with {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        sys.path.remove(str(path.parent.absolute()))
    return module
