"""Implementations that serve the operators; the reference is not timed unless asked for."""

from __future__ import annotations

import torch

import clnp_kernels.ops  # noqa: F401  loads the libraries, or notes why not
from clnp_kernels import _register


def implementation(device: str) -> str:
    """The implementation that serves on a device, as a word for the record."""
    kind = torch.device(device).type
    if kind == "cpu":
        return "C++" if loaded() else "reference"
    return f"{kind}, library {'loaded' if _register.library_state(kind) == 'loaded' else 'absent'}"


def loaded() -> bool:
    """True if the compiled library for the CPU is loaded."""
    return _register.library_state("cpu") == "loaded"


def refusal() -> str:
    """Why nothing is to be timed here: the reference would serve, and CLNP_REFERENCE=1 doesn't ask
    for it. Else "".
    """
    if loaded() or _register.reference_forced():
        return ""
    return (
        "clnp_kernels: the compiled library for the CPU isn't loaded: "
        f"{_register.library_state('cpu')}; times would be those of the reference. Build it with "
        "`make build`, or ask for the reference with --reference or CLNP_REFERENCE=1"
    )


def require(reference: bool = False) -> None:
    """Refuses to time where the reference would serve, unless `reference` asks for it.

    Raises:
        SystemExit: with the reason and the way out.
    """
    if reference and loaded():
        raise SystemExit(
            "--reference: the compiled library is loaded; to time the reference, set "
            "CLNP_REFERENCE=1"
        )
    if not reference and refusal():
        raise SystemExit(refusal())
