"""Registration of operators, and the choice of the implementation that serves them.

An operator is a schema plus a reference in plain PyTorch, registered for every device
(CompositeExplicitAutograd). Faster implementations register themselves for their own dispatch key
and take precedence: on the CPU the compiled library `clnp_kernels/_cpu*.so`, on CUDA the one
that `chooser` chooses for the call. Adding a device means adding a row to `LIBRARIES`; no operator
contains an `if device`.

Environment: `CLNP_REFERENCE=1` leaves compiled libraries unloaded, and the reference serves
without a warning. `CLNP_STRICT=1` makes it an error if the reference, or another implementation
than the chosen one, has to serve. `chooser` has the variables for CUDA.
"""

import multiprocessing
import os
import warnings
from collections.abc import Callable, Hashable, Iterator
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import chooser, torch_private
from ._checks import ORDINARY, REMEMBERED
from .errors import MissingImplementationError, ReferenceWarning
from .triton_kernels import tiles

NAMESPACE = "clnp_kernels"
FOLDER = Path(__file__).parent
# device type -> (dispatch key, owner, pattern of the library's file in FOLDER)
LIBRARIES = {"cpu": ("CPU", "C++ (csrc/cpu)", "_cpu*.so"), "cuda": ("CUDA", "CUDA", "_cuda*.so")}
# names of the implementations on CUDA, as `owner` returns them
CUDA_NAMES = {
    "torch": "PyTorch on slices",
    "triton": "Triton (triton_kernels)",
    "triton-persistent": "Triton, persistent",
    "cuda": "CUDA C++ (csrc/cuda)",
    "cublaslt": "cuBLASLt on slices",
}
# where each of them says what it can't take, in `unsupported`
FOLDERS = {
    "triton": "triton_kernels",
    "triton-persistent": "triton_kernels",
    "cuda": "cuda_kernels",
    "cublaslt": "cublaslt",
}
OLDEST_TRITON = (3, 4)  # with descriptors of tensors
OPS: list[str] = []

_library = torch.library.Library(NAMESPACE, "DEF")
_ops = getattr(torch.ops, NAMESPACE)
_ways: dict[str, "_Ways"] = {}
_references: dict[str, Callable[..., Any]] = {}
_reasons: dict[str, str] = {}  # by device type
_warned: set[str] = set()


class _Ways(NamedTuple):
    """Ways to call an operator: without gradient, with it, and within torch.func transforms."""

    plain: Callable[..., Any]
    eager: Any
    within_func: Any


def reference_forced() -> bool:
    """Return whether `CLNP_REFERENCE` is set."""
    return os.environ.get("CLNP_REFERENCE", "0") not in ("", "0")


def strict() -> bool:
    """Return whether `CLNP_STRICT` is set."""
    return os.environ.get("CLNP_STRICT", "0") not in ("", "0")


def define(name: str, schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register an operator `clnp_kernels::name` with its reference and its shapes.

    Arguments:
        name: the operator's name.
        schema: arguments and returns, as in `"(Tensor x) -> Tensor"`.
        reference: the definition in plain PyTorch, serves any device without a faster owner.
        fake: returns empty tensors of the right shapes and dtypes, for compilers.
    """

    def serve(*args: Any, **kwargs: Any) -> Any:
        _note_fallback(name, _device_type([*args, *kwargs.values()]))
        return reference(*args, **kwargs)

    _references[name] = reference
    _library.define(name + schema)
    _library.impl(name, serve, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    OPS.append(name)


def reference_of(name: str) -> Callable[..., Any]:
    """Return the definition of an operator in plain PyTorch."""
    return _references[name]


def differentiate(name: str, backward: Callable[..., Any], setup: Callable[..., Any]) -> None:
    """Register the gradient of an operator; see `torch.library.register_autograd`."""
    qualname = f"{NAMESPACE}::{name}"
    torch.library.register_autograd(qualname, backward, setup_context=setup, lib=_library)
    op = getattr(_ops, name).default

    def plain(*args: Any) -> Any:
        with torch_private.below_autograd():
            return op(*args)

    def forward(ctx: Any, *args: Any) -> Any:
        output = plain(*args)
        setup(ctx, args, output)
        return output

    for_func: dict[str, Any] = {"forward": staticmethod(plain), "generate_vmap_rule": True}
    for_func |= {"setup_context": staticmethod(setup), "backward": staticmethod(backward)}
    eager = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    base = (torch.autograd.Function,)
    _ways[name] = _Ways(plain, type(name, base, eager), type(name, base, for_func))


def call(name: str, *args: Any) -> Any:
    """Call an operator in the cheapest way that gives the gradients the caller needs.

    The gradient that torch.library registers serves compilers; it can't be used within
    `torch.func` transforms and costs more than an autograd.Function with the same formulas. One
    with `setup_context` serves `torch.func`, one without it is the cheapest.
    """
    if torch.compiler.is_compiling():
        return getattr(_ops, name)(*args)
    ways = _ways[name]
    if torch_private.within_transform():
        return ways.within_func.apply(*args)
    if torch.is_grad_enabled() and torch_private.any_requires_grad(*args):
        return ways.eager.apply(*args)
    return ways.plain(*args)


def vmap_by_loop(name: str) -> None:
    """Let `torch.func.vmap` call the operator once per element and stack the results."""
    op = getattr(_ops, name)

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        results = []
        for i in range(info.batch_size):
            pairs = zip(args, in_dims, strict=True)
            # The entry of a list of numbers is a list of None.
            results.append(op(*(a.select(d, i) if isinstance(d, int) else a for a, d in pairs)))
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])

    torch.library.register_vmap(f"{NAMESPACE}::{name}", rule, lib=_library)


def load_libraries() -> None:
    """Load the compiled libraries, and record the reason for each one that can't be loaded."""
    for device, (_, _, pattern) in LIBRARIES.items():
        _reasons[device] = _load(pattern)
    chooser.absent.update({name: reason for name, reason in _absent() if reason})
    if not reference_forced():
        for name in OPS:
            _library.impl(name, _cuda_server(name), "CUDA")


def _absent() -> Iterator[tuple[str, str]]:
    """Implementations on CUDA, and the reason why each is not there, or ''."""
    installed = find_spec("triton") is not None
    yield "triton", "" if installed else "triton is not installed"
    version = metadata.version("triton") if installed else ""
    new = tuple(map(int, version.split(".")[:2])) >= OLDEST_TRITON if installed else False
    reason = f"triton {version} is too old for descriptors of tensors" if version else ""
    yield "triton-persistent", "" if new else reason or "triton is not installed"
    library = _reasons["cuda"] and f"the CUDA library is {_reasons['cuda']}"
    yield "cuda", library
    yield "cublaslt", library or import_module(f"{__package__}.cublaslt").load()


def library_state(device: str) -> str:
    """The word "loaded", or the reason why the compiled library of a device type is not."""
    return (_reasons[device] or "loaded") if device in _reasons else "not loaded yet"


def _load(pattern: str) -> str:
    """Load one library; return the reason why that failed, or ''."""
    if reference_forced():
        return "CLNP_REFERENCE is set"
    files = sorted(FOLDER.glob(pattern))
    if not files:
        return "not built in this source tree" if in_source_tree() else "not built"
    try:
        torch.ops.load_library(str(files[0]))
    except OSError as error:
        return f"{files[0].name} does not load: {error}"
    return ""


def in_source_tree() -> bool:
    """Return whether this package is imported from a source tree, not from an installation."""
    return (FOLDER.parent / "csrc").is_dir() and (FOLDER.parent / "setup.py").is_file()


def build_advice() -> str:
    """The way to the compiled CPU library, for this copy of the package."""
    if not in_source_tree():
        return "install a C++17 compiler and reinstall clnp"
    advice = f"run `make build` or `pip install --no-build-isolation -e .` in {FOLDER.parent}"
    if _installed_library():
        advice += (
            ", or start Python in another folder: the compiled clnp that is installed is hidden "
            "by the source tree in the current folder"
        )
    return advice


def _installed_library() -> bool:
    """Return whether an installed clnp outside of this source tree has a compiled CPU library."""
    pattern = LIBRARIES["cpu"][2]
    for distribution in metadata.distributions(name="clnp"):
        folder = Path(str(distribution.locate_file("clnp_kernels")))
        if folder.is_dir() and not folder.samefile(FOLDER) and any(folder.glob(pattern)):
            return True
    return False


def _cuda_server(name: str) -> Callable[..., Any]:
    """Return a function that serves an operator on CUDA by the implementation chosen for the call,
    or by PyTorch's operators where that one can't take the arguments.

    A choice is remembered for calls that look alike. Boundaries are shapes, so calls look different
    once one has moved.
    """
    plans: dict[Hashable, tuple[ModuleType, tuple[int, ...]]] = {}

    def serve(*args: Any) -> Any:
        look = _look_of(args)
        plan = None if look is None else plans.get(look)
        if plan is None:
            module, tile, reason = _choose(name, args)
            # What falls back says so at every call, or raises in strict mode.
            if look is not None and not reason:
                if len(plans) >= REMEMBERED:
                    plans.clear()
                # Afresh, as the first choice reads the table of the device.
                plans[_look_of(args)] = module, tile
        else:
            module, tile = plan
        function = getattr(module, name)
        if not tile:
            return function(*args)
        with tiles.forced(tile):
            return function(*args)

    return serve


def _look_of(args: tuple[Any, ...]) -> Hashable:
    """Everything that the choice for a call depends on; None where it is chosen every time."""
    first = args[0]
    if type(first) not in ORDINARY:
        return None  # lists of an optimizer, once in a step; tensors of a compiler
    device = first.device
    look = [first.dtype, first.stride(), device, *chooser.conditions(device.index)]
    for arg in args:
        if isinstance(arg, Tensor):
            look += (arg.shape, arg.stride()) if arg.ndim == 4 else (arg.shape,)
        else:
            look.append(tuple(arg) if type(arg) is list else arg)
    return tuple(look)


def _choose(name: str, args: tuple[Any, ...]) -> tuple[ModuleType, tuple[int, ...], str]:
    """The module that serves a call, its tile, and why the chosen one can't serve, or ''."""
    implementation, _, reason, tile = chooser.choose(name, args)
    module, problem = _module(name, implementation, args)
    if module is None or reason or problem:
        _note_fallback(name, "cuda", reason or problem)
        module = import_module(f"{__package__}.{chooser.OFFERS[name][chooser.TORCH]}")
        return module, (), reason or problem
    return module, tile, ""


def _module(name: str, implementation: str, args: tuple[Any, ...]) -> tuple[ModuleType | None, str]:
    """The module of an implementation, and the reason why it can't serve, or ''."""
    problem = _unsupported(implementation, args) or chooser.absent.get(implementation, "")
    if problem:
        return None, problem
    try:
        return import_module(f"{__package__}.{chooser.OFFERS[name][implementation]}"), ""
    except ImportError as error:  # a triton that does not fit this torch
        return None, f"{type(error).__name__}: {error}"


def _unsupported(implementation: str, args: tuple[Any, ...]) -> str:
    """Return the reason why an implementation can't take these arguments, or ''."""
    if implementation == "torch":
        return ""
    unsupported = import_module(f"{__package__}.{FOLDERS[implementation]}").unsupported
    given = args[:1] if isinstance(args[0], Tensor) else args[0]
    kinds = {tensor.dtype: tensor for tensor in given}  # a list is on one device
    return next((reason for reason in map(unsupported, kinds.values()) if reason), "")


def owner(name: str, device: str) -> tuple[str, str]:
    """Return the implementation of an operator on a device type, and the reason for a slow one."""
    key, implementation, _ = LIBRARIES[device]
    if device == "cuda" and not reference_forced():
        chosen, reason = chooser.explain(name)
        missing = chooser.absent.get(chosen)
        return (CUDA_NAMES["torch"], missing) if missing else (CUDA_NAMES[chosen], reason)
    if torch_private.has_kernel(f"{NAMESPACE}::{name}", key):
        return implementation, ""
    return "reference", _reasons.get(device) or "no implementation for this device yet"


def _device_type(arguments: list[Any]) -> str:
    """Device type of the first tensor among the arguments."""
    for argument in arguments:
        first = argument[0] if isinstance(argument, (list, tuple)) and argument else argument
        if isinstance(first, Tensor):
            return first.device.type
    return "cpu"


def _note_fallback(name: str, device: str, reason: str = "") -> None:
    """Warn once per device of a slower implementation than the chosen one; raise in strict mode."""
    if reference_forced() or device not in LIBRARIES:
        return
    reason = reason or owner(name, device)[1]
    text = f"clnp_kernels: the slower reference serves on {device}: {reason}; {build_advice()}"
    if device == "cuda":
        way_out = "`clnp info` has more, CLNP_TUNE=off accepts that"
        text = f"clnp_kernels: PyTorch's own operators serve on cuda: {reason}; {way_out}"
    if strict():
        raise MissingImplementationError(f"{NAMESPACE}::{name}: {text}, or unset CLNP_STRICT")
    # The parent of a worker has warned already.
    if device not in _warned and multiprocessing.parent_process() is None:
        _warned.add(device)
        silence = (
            "`python -m clnp_kernels.info` shows all operators; CLNP_REFERENCE=1 silences this"
        )
        warnings.warn(f"{text}. {silence}", ReferenceWarning, stacklevel=2)
