"""Networks by name, and weights from files."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ConfigError
from . import networks
from .own_file import check_own_file, is_own_file, make_from_file

# Networks of this package; all other names are torchvision's.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": networks.mlp,
    "narrow": networks.narrow,
    "wide": networks.wide,
    "resnet18_small": networks.resnet18_small,
}
# Keys of a state dict in the files of training scripts.
NESTED = ("state_dict", "model", "model_state_dict", "net")
# Prefixes that wrappers add to the names of weights.
WRAPPERS = ("module.", "_orig_mod.")


def names() -> list[str]:
    """Return all names for `make`: those of this package, then torchvision's classifiers.

    Raises:
        ConfigError: no torchvision.
    """
    models = networks.torchvision_models()
    return [*NETWORKS, *models.list_models(module=models)]


def make(
    name: str, classes: int, shape: tuple[int, ...], *, seed: int | None = None, **options: Any
) -> nn.Module:
    """Make a newly initialised network by its name.

    Arguments:
        name: a key of `NETWORKS`, a classification network of torchvision, such as
            "mobilenet_v2", or "FILE.py:NAME" for a class or function of one's own file.
        classes: number of outputs.
        shape: shape of one example without the batch; (C, H, W) except for "mlp", which flattens.
        seed: seeds the weights without use of torch's global generator.
        options: keyword arguments of the network (width, depth, scale, dropout, ...). None means
            not given.

    Returns:
        a module x [B, *shape] -> logits [B, classes].

    Raises:
        ConfigError: an unknown name (similar ones are listed), an option that this network lacks,
            or no torchvision.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if name == "mlp":
        return _flattening(
            shape,
            _build(name, networks.mlp, classes=classes, inputs=_numel(shape), seed=seed, **given),
        )
    if name in NETWORKS:
        return _build(name, NETWORKS[name], classes=classes, shape=shape, seed=seed, **given)
    check_name(name)
    if is_own_file(name):
        with networks.seeded_weights(seed):
            return make_from_file(name, classes, shape, given)
    if len(shape) != 3 or shape[0] != 3:
        raise ConfigError(
            f"network {name!r}: expected examples [3, H, W], as all of torchvision's, got "
            f"{list(shape)}; use one of {', '.join(NETWORKS)}"
        )
    builder = networks.torchvision_models().get_model_builder(name)
    with networks.seeded_weights(seed):
        return _build(name, builder, weights=None, num_classes=classes, **given)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option that a network of `NETWORKS` lacks; None means not given."""
    if name in NETWORKS:
        _check_known(name, NETWORKS[name], [k for k, v in options.items() if v is not None])


def _check_known(name: str, builder: Callable[..., nn.Module], given: Iterable[str]) -> None:
    parameters = inspect.signature(builder).parameters
    unknown = sorted(set(given) - set(parameters))
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = [p for p in parameters if p not in ("classes", "shape", "inputs", "seed")]
        expected = "options out of " + ", ".join(known) if known else "no options"
        raise ConfigError(f"network {name!r}: expected {expected}, got {', '.join(unknown)}")


def _build(name: str, builder: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    _check_known(name, builder, arguments)
    try:
        return builder(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"network {name!r}: can't be made ({error})") from error


def _flattening(shape: tuple[int, ...], net: nn.Module) -> nn.Module:
    if len(shape) == 1:
        return net
    flat = nn.Sequential(nn.Flatten())
    for name, layer in net.named_children():
        flat.add_module(name, layer)
    return flat


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def check_name(name: str) -> None:
    """Raise ConfigError for an unknown name (similar ones are listed), or if torchvision lacks."""
    if is_own_file(name):
        check_own_file(name)
        return
    if name in NETWORKS:
        if name == "resnet18_small":
            networks.torchvision_models()
        return
    known = names()
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    hint = f"; similar ones are {', '.join(near)}" if near else ""
    raise ConfigError(
        f"network: expected one of {', '.join(NETWORKS)}, a classification network of "
        f"torchvision, or FILE.py:NAME, got {name!r}{hint}"
    )


def load_weights(net: nn.Module, path: str | Path, *, head: bool = True) -> list[str]:
    """Load a state dict into a network.

    Arguments:
        net: the network, changed in place.
        path: a .safetensors file, or a file of `torch.save` with a state dict, a dictionary that
            contains one, or one of a wrapped network ("module."). Only tensors are read; no code is
            executed.
        head: also load the last layer. False skips those of its weights that have another shape in
            the file, as they have for other classes.

    Returns:
        names of the skipped weights.

    Raises:
        ConfigError: the file can't be read or doesn't fit; the first such weights are named.
    """
    path = Path(path)
    state = _stripped(read_weights(path))
    own = net.state_dict()
    other = [k for k, v in own.items() if k in state and state[k].shape != v.shape]
    # Old files lack the counters of batch norm, which conversion doesn't use.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    last = _last_layer(net)
    left = [] if head else [k for k in other if k.rpartition(".")[0] == last]
    wrong = [k for k in other if k not in left]
    if missing or unexpected or wrong:
        problems = [
            *(f"{k} is missing" for k in missing),
            *(f"{k} is not in the network" for k in unexpected),
            *(f"{k}: expected {list(own[k].shape)}, got {list(state[k].shape)}" for k in wrong),
        ]
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ConfigError(
            f"{path}: expected the weights of the network: {'; '.join(problems[:3])}{more}"
        )
    net.load_state_dict({**own, **{k: v for k, v in state.items() if k not in left}})
    return left


def _last_layer(net: nn.Module) -> str:
    layers = [n for n, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return layers[-1] if layers else ""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a file, as `load_weights`; raises ConfigError if it has none."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ConfigError(f"{path}: can't be read as weights ({error})") from error
    except Exception as error:  # pickle.UnpicklingError if it holds more than tensors
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path}: holds more than tensors, or is damaged ({first}); save it with "
            "torch.save(net.state_dict(), path)"
        ) from error
    for key in NESTED:
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not all(isinstance(v, Tensor) for v in data.values()):
        raise ConfigError(
            f"{path}: expected a state dict; save it with torch.save(net.state_dict(), path)"
        )
    return data


def _stripped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for word in WRAPPERS:
        if state and all(key.startswith(word) for key in state):
            state = {key.removeprefix(word): value for key, value in state.items()}
    return state
