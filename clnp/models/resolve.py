"""From a name to a network, and from a file to its weights."""

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

# Our own: name -> function. All others are torchvision's.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": networks.mlp,
    "narrow": networks.narrow,
    "wide": networks.wide,
    "resnet18_small": networks.resnet18_small,
}
# Keys under which training scripts keep a state dict.
NESTED = ("state_dict", "model", "model_state_dict", "net")
# Words before the names of the weights that wrappers leave there.
WRAPPERS = ("module.", "_orig_mod.")


def names() -> list[str]:
    """All names that `make` takes: our own, then torchvision's classification networks.

    Raises:
        ConfigError: no torchvision.
    """
    models = networks.torchvision_models()
    return [*NETWORKS, *models.list_models(module=models)]


def make(
    name: str, classes: int, shape: tuple[int, ...], *, seed: int | None = None, **options: Any
) -> nn.Module:
    """A freshly initialised network by its name.

    Arguments:
        name: a key of `NETWORKS`, or a classification network of torchvision, such as
            "mobilenet_v2".
        classes: outputs.
        shape: of one example without the batch; (C, H, W) for all but "mlp", which flattens.
        seed: seeds the weights without touching torch's global generator.
        options: for our own networks their keyword arguments (width, depth, scale, dropout, head),
            for torchvision's theirs. None means not given.

    Returns:
        a module x [B, *shape] -> logits [B, classes].

    Raises:
        ConfigError: an unknown name, listing near ones; an option that this network doesn't take;
            no torchvision.
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
    if len(shape) != 3 or shape[0] != 3:
        raise ConfigError(
            f"network {name!r}: examples have shape {list(shape)}, torchvision's networks take "
            "[3, H, W]; ours are " + ", ".join(NETWORKS)
        )
    builder = networks.torchvision_models().get_model_builder(name)
    with networks.seeded_weights(seed):
        return _build(name, builder, weights=None, num_classes=classes, **given)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises ConfigError for an option that one of our own networks doesn't take; None counts as
    not given.
    """
    if name in NETWORKS:
        _check_known(name, NETWORKS[name], [k for k, v in options.items() if v is not None])


def _check_known(name: str, builder: Callable[..., nn.Module], given: Iterable[str]) -> None:
    parameters = inspect.signature(builder).parameters
    unknown = sorted(set(given) - set(parameters))
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = [p for p in parameters if p not in ("classes", "shape", "inputs", "seed")]
        raise ConfigError(
            f"network {name!r}: takes no {', '.join(unknown)}"
            + (f"; it takes {', '.join(known)}" if known else "")
        )


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
    """Raises ConfigError, listing near ones, unless `make` knows a network of that name, or where
    torchvision lacks, which it needs.
    """
    if name in NETWORKS:
        if name == "resnet18_small":
            networks.torchvision_models()
        return
    known = names()
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    raise ConfigError(
        f"network {name!r}: unknown; near ones are {', '.join(near)}"
        if near
        else f"network {name!r}: unknown; there are {', '.join(NETWORKS)} and torchvision's "
        "classification networks"
    )


def load_weights(net: nn.Module, path: str | Path, *, head: bool = True) -> list[str]:
    """Loads a state dict into a network.

    Arguments:
        net: is changed in place.
        path: a .safetensors file, or what `torch.save` wrote of a state dict, of a dictionary that
            holds one, or of a wrapped one ("module."). Only tensors are read, no code is run.
        head: take the last layer too. False leaves those weights alone that the file has in another
            shape, which are the last layer's if it has other classes.

    Returns:
        names of the weights that were left alone, empty if the file had all of them.

    Raises:
        ConfigError: the file can't be read or doesn't fit, naming the first weights that don't.
    """
    path = Path(path)
    state = _stripped(read_weights(path))
    own = net.state_dict()
    other = [k for k, v in own.items() if k in state and state[k].shape != v.shape]
    # Networks saved long ago lack the counters of batch norm, which nothing here reads.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    last = _last_layer(net)
    left = [] if head else [k for k in other if k.rpartition(".")[0] == last]
    wrong = [k for k in other if k not in left]
    if missing or unexpected or wrong:
        problems = [
            *(f"lacks {k}" for k in missing),
            *(f"has {k}, which the network lacks" for k in unexpected),
            *(f"{k} is {list(state[k].shape)}, wanted {list(own[k].shape)}" for k in wrong),
        ]
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ConfigError(f"{path}: does not fit the network: {'; '.join(problems[:3])}{more}")
    net.load_state_dict({**own, **{k: v for k, v in state.items() if k not in left}})
    return left


def _last_layer(net: nn.Module) -> str:
    layers = [n for n, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return layers[-1] if layers else ""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a file, as `load_weights` takes it. Raises ConfigError if it has none."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ConfigError(f"{path}: can't be read as weights ({error})") from error
    except Exception as error:  # pickle.UnpicklingError where it holds more than tensors
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path}: holds more than tensors, or is damaged ({first}); save it with "
            "torch.save(net.state_dict(), path)"
        ) from error
    for key in NESTED:
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not all(isinstance(v, Tensor) for v in data.values()):
        raise ConfigError(f"{path}: holds no state dict; save torch.save(net.state_dict(), path)")
    return data


def _stripped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for word in WRAPPERS:
        if state and all(key.startswith(word) for key in state):
            state = {key.removeprefix(word): value for key, value in state.items()}
    return state
