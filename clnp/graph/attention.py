"""Lowering of attention: products of two values, masks, PyTorch's attention functions.

Queries, keys and values are [B, heads, T, D]. A head is a unit: it attends for itself, so a head of
a later task changes nothing in one of an earlier task.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .axes import UnclearError
from .constants import encoded
from .statics import Static
from .trace import argument
from .weights import Layer, changed, per_channel, static_of

Joined = Callable[[Any, fx.Node], bool]


def _inputs(low: Any, *nodes: object) -> list[str] | None:
    """Return the names of values; None if one of them is none."""
    if any(not isinstance(node, fx.Node) or node not in low.names for node in nodes):
        return None
    return [low.names[node] for node in nodes]


def product(low: Any, node: fx.Node) -> bool:
    """Read a matrix product of two values."""
    given = [*node.args, *(node.kwargs[k] for k in ("other", "mat2") if k in node.kwargs)]
    inputs = _inputs(low, *given) if len(given) == 2 else None
    if inputs is None:
        return False
    low._chain(node, inputs, [("product", {})])
    return True


def einsum(low: Any, node: fx.Node) -> bool:
    """Read torch.einsum(equation, a, b) of two values."""
    equation, *given = node.args
    if len(given) == 1 and isinstance(given[0], list | tuple):
        given = list(given[0])
    inputs = _inputs(low, *given) if len(given) == 2 else None
    if inputs is None:
        return False
    text = str(equation).replace(" ", "")
    if "->" not in text or "." in text:
        raise UnclearError("its equation has dots or no arrow; name every axis of the result")
    low._chain(node, inputs, [("einsum", {"equation": text})])
    return True


def filled(low: Any, node: fx.Node) -> bool:
    """Read x.masked_fill(mask, number), and torch.where(mask, x, number)."""
    if str(getattr(node.target, "__name__", node.target)).startswith("where"):
        mask, first, second = node.args
        inverted = static_of(second) is None and isinstance(second, fx.Node)
        source, number = (second, first) if inverted else (first, second)
    else:
        (source, mask, number), inverted = node.args, True
    static = static_of(mask)
    if not isinstance(source, fx.Node) or source not in low.names or static is None:
        return False
    fill = static_of(number)
    if fill is not None and fill.is_number:
        number = fill.value.item()
    if not isinstance(number, int | float) or static.learned or static.random:
        return False
    value = static.value.bool()
    axis, _ = low._channels(source)
    aligned = _aligned(value if inverted else ~value, axis, low.shapes[source.name])
    attrs = {"value": encoded(aligned), "axis": axis, "number": float(number)}
    low._chain(node, [low.names[source]], [("fill", attrs)])
    return True


def _aligned(value: Tensor, axis: int | None, shape: tuple[int, ...]) -> Tensor:
    """Give a mask the axes of a value; it must be equal in all channels and examples."""
    if value.dim() > len(shape):
        raise UnclearError("it broadcasts a value to more axes")
    value = value.reshape(*[1] * (len(shape) - value.dim()), *value.shape)
    if len(value) > 1 and value.dim() == len(shape):
        if not bool((value == value[:1]).all()):
            raise UnclearError("its mask differs among the examples of a batch")
        value = value[:1]
    if axis is not None and value.shape[axis] > 1:
        first = value.narrow(axis, 0, 1)
        if not bool((value == first).all()):
            raise UnclearError("its mask differs among channels, which later tasks' channels lack")
        value = first
    return value


def attention(low: Any, node: fx.Node) -> bool:
    """Read F.scaled_dot_product_attention."""
    inputs = _inputs(
        low, *(argument(node, i, n, None) for i, n in enumerate(("query", "key", "value")))
    )
    if inputs is None:
        return False
    names = (("attn_mask", None), ("dropout_p", 0.0), ("is_causal", False), ("scale", None))
    mask, p, causal, scale = (argument(node, 3 + i, n, d) for i, (n, d) in enumerate(names))
    shared = bool(node.kwargs.get("enable_gqa", False))
    query = argument(node, 0, "query", None)
    dims = len(low.shapes[query.name])
    if dims != 4:
        raise UnclearError(f"expected queries [B, heads, T, D], got {dims} axes")
    static = static_of(mask)
    if mask is not None and static is None:
        raise UnclearError("its mask depends on the input, which is not supported")
    if static is not None and (static.learned or static.random):
        if causal or shared:
            raise UnclearError("it has a learned bias, and is causal or shares heads")
        _with_bias(low, node, inputs, static, float(p), scale)
        return True
    attrs = {"p": float(p), "causal": bool(causal), "scale": scale, "shared": shared}
    attrs["mask"] = None if static is None else _additive(static.value, low.shapes[query.name])
    low._chain(node, inputs, [("attention", attrs)])
    return True


def _additive(mask: Tensor, shape: tuple[int, ...]) -> Any:
    """Encode a mask that is added to the products; truth values mark what is seen."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    aligned = _aligned(mask, 1, (*shape[:3], mask.shape[-1])) if mask.dim() > 2 else mask
    return encoded(aligned)


def _with_bias(
    low: Any, node: fx.Node, inputs: list[str], bias: Static, p: float, scale: float | None
) -> None:
    """Emit an attention whose products get a learned bias, per head or for all heads."""
    q, k, v = inputs
    query = argument(node, 0, "query", None)
    shape = low.shapes[query.name]
    factor = shape[-1] ** -0.5 if scale is None else float(scale)
    base = node.name
    k = low._emit("permute", [k], {"dims": [0, 1, 3, 2]}, f"{base}_keys")
    name = low._emit("product", [q, k], {}, f"{base}_product")
    name = low._emit("mul_number", [name], {"value": factor}, f"{base}_scaled")
    low.names[node] = name
    value = bias.value.detach()
    value = value.reshape(*[1] * (4 - value.dim()), *value.shape)
    if len(value) > 1:
        raise UnclearError("its bias differs among the examples of a batch")
    low._check_learned(bias, node)
    low._layer(node, per_channel("shift", changed(bias, value), 1, 4, shape[1]))
    name = low._emit("softmax", [low.names[node]], {"dim": 3}, f"{base}_softmax")
    if p:
        name = low._emit("dropout", [name], {"p": p}, f"{base}_dropout")
    low._chain(node, [name, v], [("product", {})])


# nn.MultiheadAttention

ODD = ("bias_k", "bias_v", "add_zero_attn", "static_k", "static_v", "key_padding_mask")


def multi_head(low: Any, node: fx.Node) -> None:
    """Read F.multi_head_attention_forward on [T, B, C]: linear layers around an attention."""
    bound = inspect.signature(F.multi_head_attention_forward).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    given = bound.arguments
    odd = [name for name in ODD if given[name] not in (None, False)]
    if odd:
        raise UnclearError(f"its argument {odd[0]!r} is not supported")
    sources = [given[name] for name in ("query", "key", "value")]
    names = _inputs(low, *sources)
    if names is None or len(low.shapes[sources[0].name]) != 3:
        raise UnclearError("expected queries, keys and values [T, B, C] that depend on the input")
    inside = [p for p in node.meta.get("nn_module_stack", ()) if p]
    path, heads = inside[-1] if inside else node.name, int(given["num_heads"])
    dim = int(given["embed_dim_to_check"]) // heads
    packed = sources[0] is sources[1] is sources[2] and not given["use_separate_proj_weight"]
    make = _packed_heads if packed else _separate_heads
    q, k, v = make(low, node, path, names, given, (heads, dim))
    p = float(given["dropout_p"])
    attrs = {"p": p, "causal": False, "scale": None, "shared": False, "mask": _mask(low, given)}
    name = low._emit("attention", [q, k, v], attrs, f"{path}.attention")
    name = low._emit("permute", [name], {"dims": [2, 0, 1, 3]}, f"{node.name}_tokens")
    flat = {"start_dim": 2, "end_dim": 3, "positions": dim}
    name = low._emit("flatten", [name], flat, f"{node.name}_joined")
    vectors = given["out_proj_weight"], given["out_proj_bias"]
    low.names[node] = _linear(low, node, f"{path}.out_proj", name, *vectors)


def _mask(low: Any, given: dict[str, Any]) -> Any:
    mask = given["attn_mask"]
    if mask is None:
        return None
    static = static_of(mask)
    if static is None or static.learned or static.value.dim() != 2:
        raise UnclearError("expected a mask [T, T] that does not depend on the input")
    value = static.value
    return _additive(~value if value.dtype == torch.bool else value, ())


def _packed_heads(
    low: Any, node: fx.Node, path: str, names: list[str], given: Any, size: tuple[int, int]
) -> list[str]:
    """Emit one layer for queries, keys and values."""
    vectors = given["in_proj_weight"], given["in_proj_bias"]
    name = _linear(low, node, f"{path}.in_proj", names[0], *vectors)
    attrs = {"dim": 2, "sizes": [-1, 3, size[1]]}
    name = low._emit("packed", [name], attrs, f"{node.name}_heads")
    parts = [
        low._emit("select", [name], {"dim": 2, "index": i}, f"{node.name}_part") for i in range(3)
    ]
    return [low._emit("permute", [p], {"dims": [1, 2, 0, 3]}, f"{node.name}_order") for p in parts]


def _separate_heads(
    low: Any, node: fx.Node, path: str, names: list[str], given: Any, size: tuple[int, int]
) -> list[str]:
    """Emit a layer each for queries, keys and values."""
    found = []
    for i, (key, name) in enumerate(zip("qkv", names, strict=True)):
        weight, bias = given[f"{key}_proj_weight"], given["in_proj_bias"]
        rows = slice(i * size[0] * size[1], (i + 1) * size[0] * size[1])
        weight = _rows(given["in_proj_weight"], rows) if weight is None else static_of(weight)
        made = _linear(low, node, f"{path}.{key}_proj", name, weight, _rows(bias, rows))
        attrs = {"dim": 2, "sizes": [-1, size[1]]}
        made = low._emit("heads", [made], attrs, f"{node.name}_heads")
        found.append(low._emit("permute", [made], {"dims": [1, 2, 0, 3]}, f"{node.name}_order"))
    return found


def _rows(node: object, rows: slice) -> Static | None:
    static = static_of(node)
    return None if static is None else changed(static, static.value.detach()[rows])


def _linear(low: Any, node: fx.Node, path: str, source: str, weight: Any, bias: Any) -> str:
    """Emit a Linear with these weights, which may be rows of one parameter."""
    weight, bias = (
        v if isinstance(v, Static) or v is None else static_of(v) for v in (weight, bias)
    )
    if weight is None:
        raise UnclearError("its weight depends on the input")
    outputs, inputs = weight.value.shape
    attrs = {"in_features": inputs, "out_features": outputs, "bias": bias is not None}
    layer = Layer("linear", attrs, {"weight": weight, "bias": bias})
    return str(low._add_layer(node, layer, low._layer_name(path), source))


JOINED: dict[str, Joined] = {
    **dict.fromkeys(("matmul", "bmm", "__matmul__"), product),
    "einsum": einsum,
    **dict.fromkeys(("masked_fill", "masked_fill_", "where"), filled),
    "scaled_dot_product_attention": attention,
}
