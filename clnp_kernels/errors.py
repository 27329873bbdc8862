"""Errors and warnings of this package, and the form of their messages."""


class MissingImplementationError(RuntimeError):
    """Strict mode (``CLNP_STRICT=1``): an operator has no fast implementation for this device."""


class ReferenceWarning(RuntimeWarning):
    """An operator is served by its slow reference because no faster implementation is there."""


def message(argument: str, got: object, wanted: str, way_out: str = "") -> str:
    """The form of every message: the argument, what came, what was wanted, the way out."""
    text = f"{argument}: got {got}, wanted {wanted}"
    return f"{text}; {way_out}" if way_out else text
