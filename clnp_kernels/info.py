"""Table of the implementations that serve the operators: `python -m clnp_kernels.info`."""

import platform
from importlib import metadata

import torch

from . import __version__


def implementations() -> dict[tuple[str, str], tuple[str, str]]:
    """The table `{(operator, device type): (implementation, reason)}`.

    The reason is empty unless the reference serves for lack of an implementation. On CUDA it is the
    evidence for the choice for a small call (the choice may depend on the size).
    """
    from . import _register, ops  # noqa: F401  (importing ops registers the operators)

    pairs = [(name, device) for name in _register.OPS for device in _register.LIBRARIES]
    return {(name, device): _register.owner(name, device) for name, device in pairs}


def versions() -> dict[str, str]:
    """Return the versions that results and speed depend on."""
    from . import _register, chooser, ops  # noqa: F401  (importing ops loads the libraries)

    return {
        "clnp_kernels": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "cuda devices": str(torch.cuda.device_count()),
        "cuda of torch": str(torch.version.cuda),
        "triton": _triton(),
        "imported from": "a source tree" if _register.in_source_tree() else "an installation",
        "cpu library": _register.library_state("cpu"),
        "cuda library": _register.library_state("cuda"),
        "cublaslt": chooser.absent.get("cublaslt", "loaded"),
    }


def _triton() -> str:
    """Return the version of triton without importing it."""
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "not installed"


def table() -> list[str]:
    """The table of implementations as lines of text."""
    lines = [f"{'operator':26} {'device':7} {'implementation':24} reason"]
    for (name, device), (implementation, reason) in implementations().items():
        lines.append(f"{name:26} {device:7} {implementation:24} {reason}".rstrip())
    return lines


def describe() -> str:
    """The versions and the table as text."""
    lines = [f"{key:14} {value}" for key, value in versions().items()]
    return "\n".join([*lines, "", *table()])


if __name__ == "__main__":
    print(describe())
