"""Errors and warnings of this package, and the form of their messages."""


class MissingImplementationError(RuntimeError):
    """Strict mode (`CLNP_STRICT=1`): an operator has no fast implementation for this device."""


class ReferenceWarning(RuntimeWarning):
    """An operator is served by its slow reference for lack of a faster implementation."""


class TuneWarning(RuntimeWarning):
    """The check or the table of the GPU kernels can't be used, or can't be kept."""


def message(argument: str, got: object, wanted: str, way_out: str = "") -> str:
    """The text of an error: "argument: expected X, got Y; way out"."""
    text = f"{argument}: expected {wanted}, got {got}"
    return f"{text}; {way_out}" if way_out else text
