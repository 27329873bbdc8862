"""Networks that return a dictionary, a tuple or a named structure of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import ConvertError

AUXILIARY = "aux"  # heads of this name serve the original training only
Output = str | int | None


def check_output(output: Any) -> None:
    """Raise ConvertError unless `output` is a name, a position or None."""
    if output is not None and (isinstance(output, bool) or not isinstance(output, str | int)):
        raise ConvertError(f"output: expected a name, a position or None, got {output!r}")


def entries_of(result: Any) -> dict[str | int, Tensor] | None:
    """Return the tensors in a network's result by name or position; None for another result.

    A mapping, a data class and a named tuple have names, a list or tuple has positions. Entries
    that are no tensors are left out.
    """
    if isinstance(result, Mapping):
        found = dict(result)
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        found = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    elif isinstance(result, tuple) and hasattr(result, "_fields"):
        found = dict(zip(result._fields, result, strict=True))
    elif isinstance(result, list | tuple):
        found = dict(enumerate(result))
    else:
        return None
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


def logits_of(result: Any, output: Output = None) -> Any:
    """Return the logits in a network's result.

    Arguments:
        result: what its forward returns. A single tensor is the logits, whatever `output` is.
        output: name or position of the logits. By default the only tensor that is no auxiliary
            head, that is, whose name doesn't begin with "aux".

    Raises:
        ConvertError: there is no such output, or it isn't clear which one is meant.
    """
    entries = entries_of(result)
    if isinstance(result, Tensor) or entries is None:
        return result
    if output is None:
        main = [key for key in entries if not is_auxiliary(key)]
        if len(main) == 1:
            return entries[main[0]]
        raise ConvertError(
            f"output: expected the name or position of the logits, one of {list(entries)}, which "
            "this network returns; pass convert(..., output=...), the others are left out"
        )
    if output not in entries:
        raise ConvertError(f"output: expected one of {list(entries)}, got {output!r}")
    return entries[output]


def is_auxiliary(key: str | int) -> bool:
    """Return whether an output is an auxiliary head, judged by its name."""
    return isinstance(key, str) and key.startswith(AUXILIARY)


class OneOutput:
    """Forward hook that leaves only the logits of a network's result.

    Attributes:
        left_out: names or positions of the other outputs.

    Arguments:
        output: as for `logits_of`.
    """

    def __init__(self, output: Output) -> None:
        self.output = output
        self.left_out: dict[str | int, None] = {}

    def __call__(self, module: nn.Module, args: Any, result: Any) -> Any:
        logits = logits_of(result, self.output)
        for key, value in (entries_of(result) or {}).items():
            if value is not logits:
                self.left_out[key] = None
        return logits
