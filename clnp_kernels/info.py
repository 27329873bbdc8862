"""Which implementation serves which operator, and why: ``python -m clnp_kernels.info``."""

import platform

import torch

from . import __version__


def implementations() -> dict[tuple[str, str], tuple[str, str]]:
    """The table ``{(operator, device type): (implementation, reason)}``.

    The reason is empty unless the reference serves because something is missing, or the
    implementation is experimental.
    """
    from . import _register, ops  # noqa: F401  (importing ops registers the operators)

    pairs = [(name, device) for name in _register.OPS for device in _register.LIBRARIES]
    return {(name, device): _register.owner(name, device) for name, device in pairs}


def versions() -> dict[str, str]:
    """Versions of what matters here."""
    return {
        "clnp_kernels": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "cuda devices": str(torch.cuda.device_count()),
    }


def describe() -> str:
    """The table and the versions as text."""
    lines = [f"{key:14} {value}" for key, value in versions().items()]
    lines += ["", f"{'operator':26} {'device':7} {'implementation':16} reason"]
    for (name, device), (implementation, reason) in implementations().items():
        lines.append(f"{name:26} {device:7} {implementation:16} {reason}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe())
