"""Exported files give the network's logits, or an error says why there is no file."""

import contextlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import clnp
from clnp.deploy import export_check
from clnp.deploy.network_file import GRAPH
from clnp.errors import ConfigError, DataError, ExportError
from clnp.graph.constants import encoded
from clnp.graph.graph import OPS, Graph, Node, build, for_inference
from clnp.graph.transformer_operations import arguments
from tests.clnp.cases import mlp
from tests.clnp.conv_cases import SHAPE
from tests.clnp.deploy.test_extract import learned

IMAGE = [2, 3, 11, 9]
onnx_is_there = all(
    importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")
)
needs_onnx = pytest.mark.skipif(not onnx_is_there, reason="the packages for ONNX are missing")


def conv(**attrs: Any) -> dict[str, Any]:
    common = {"in_channels": 3, "out_channels": 4, "stride": [1, 1], "dilation": [1, 1]}
    return {**common, "kernel_size": [3, 3], "padding": [0, 0], "groups": 1, "bias": True, **attrs}


def max_pool(size: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> dict[str, Any]:
    shape = {"kernel_size": size, "stride": stride, "padding": padding}
    return {**shape, "dilation": dilation, "ceil_mode": ceil}


def avg_pool(ceil: bool, include: bool, divisor: int | None) -> dict[str, Any]:
    shape = {"kernel_size": [3, 2], "stride": [2, 3], "padding": [1, 1], "ceil_mode": ceil}
    return {**shape, "count_include_pad": include, "divisor_override": divisor}


def upsample(size: Any, factor: Any) -> dict[str, Any]:
    return {"size": size, "scale_factor": factor, "mode": "nearest"}


SIZES = [{"output_size": size} for size in ([1, 1], [2, 2], [4, 5], [None, 3], [13, 2])]
NORMS = [
    {"num_features": 3, "eps": eps, "momentum": 0.1, "affine": affine}
    for eps, affine in ((1e-5, True), (0.1, False))
]
# Every operation with attributes that are not the common ones.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "linear": [{"in_features": 9, "out_features": 4, "bias": bias} for bias in (True, False)],
    "conv2d": [
        conv(kernel_size=[3, 2], padding="same", dilation=[2, 3]),
        conv(kernel_size=[4, 4], padding="same"),
        conv(padding="valid", bias=False),
        conv(stride=[2, 3], padding=[1, 0], dilation=[2, 1]),
    ],
    "depthwise_conv2d": [
        conv(out_channels=3, groups=3, padding="same", dilation=[2, 2]),
        conv(out_channels=3, groups=3, padding=[1, 2], stride=[2, 1]),
    ],
    "grouped_conv2d": [conv(out_channels=6, groups=3, stride=[2, 1])],
    "group_norm": [{"each": 3, "eps": 0.01}],
    "concat": [{"dim": 1, "sizes": [3, 3]}],
    "parts": [{"dim": 1, "parts": [[0, 1, 3], [1, 0, 2]]}],
    "picked": [{"dim": 1, "index": [5, 0, 3]}],
    "channel_shuffle": [{"groups": 3}],
    "pixel_shuffle": [{"factor": 2}],
    "batch_norm1d": NORMS,
    "batch_norm2d": NORMS,
    "leaky_relu": [{"negative_slope": slope} for slope in (0.3, -0.5, 0.0)],
    "elu": [{"alpha": alpha} for alpha in (1.0, 0.3, -1.0)],
    "gelu": [{"approximate": kind} for kind in ("none", "tanh")],
    "hardtanh": [{"min_val": low, "max_val": high} for low, high in ((-0.2, 0.7), (0.5, 2.0))],
    "softplus": [
        {"beta": beta, "threshold": threshold}
        for beta, threshold in ((1.0, 20.0), (2.0, 20.0), (1.0, 0.5), (0.1, 0.2))
    ],
    "dropout": [{"p": 0.5}],
    "stochastic_depth": [{"p": 0.5, "mode": "row"}],
    "dropout2d": [{"p": 0.5}],
    "max_pool2d": [
        max_pool([2, 2], [2, 2], [0, 0], [1, 1], True),
        max_pool([3, 2], [2, 3], [1, 1], [1, 1], True),
        max_pool([3, 3], [2, 2], [1, 1], [2, 2], True),
        max_pool([2, 2], [3, 3], [1, 1], [1, 1], True),
        max_pool([3, 3], [2, 2], [1, 0], [2, 1], False),
    ],
    "avg_pool2d": [
        avg_pool(ceil, include, divisor)
        for ceil in (True, False)
        for include in (True, False)
        for divisor in ((None, 3) if ceil else (None,))
    ],
    "adaptive_avg_pool2d": SIZES,
    "adaptive_max_pool2d": SIZES[::2],
    "zero_pad2d": [{"padding": [1, 2, 0, 3]}, {"padding": [-1, 2, 1, -2]}],
    "upsample": [
        upsample(None, 2.0),
        upsample(None, [1.7, 2.3]),
        upsample([7, 20], None),
        upsample(None, 0.6),
    ],
    "flatten": [{"start_dim": 1, "end_dim": -1}],
    "log_softmax": [{"dim": 1}, {"dim": -1}],
    **{
        f"{name}_number": [{"value": value} for value in values]
        for name, values in {
            "add": (2, 0.1),
            "sub": (2, 0.1),
            "mul": (2, 0.1),
            "div": (3, 0.1),
            "pow": (2, 3),
            "rsub": (1, 0.5),
            "rdiv": (1, 0.5),
        }.items()
    },
    "celu": [{"alpha": 0.5}],
    "hardshrink": [{"lambd": 0.3}],
    "softshrink": [{"lambd": 0.3}],
    "threshold": [{"threshold": 0.2, "value": -0.5}],
    "lp_pool2d": [{"norm_type": 2.0, "kernel_size": [2, 3], "stride": [1, 2], "ceil_mode": False}],
    "instance_norm": [{"eps": 0.01}],
    "unflatten": [{"dim": 2, "sizes": [-1, 1]}, {"dim": 0, "sizes": [-1, 1]}],
    "permute": [{"dims": [0, 2, 3, 1]}],
    "squeeze": [{"dim": 2}],
    "insert_axis": [{"dim": 2}],
    "select": [{"dim": 3, "index": 2}],
    "slice": [{"dim": 2, "start": 1, "stop": 8, "step": 2}],
    **{
        name: [{"dim": [2, 3], "keepdim": False}, {"dim": [3], "keepdim": True}]
        for name in ("mean", "sum", "amax", "amin")
    },
    "softmax": [{"dim": 3}],
    "flip": [{"dims": [2, 3]}],
    "roll": [{"shifts": [1, 3], "dims": [2, 3]}],
    "pad": [
        {"pad": [1, 2, 0, 3], "mode": "constant", "value": 0.5},
        {"pad": [1, 2, 2, 1], "mode": "reflect", "value": 0.0},
    ],
    "expand": [{"sizes": [-1, -1, 11, -1]}],
    "clamp": [{"min": -0.3, "max": 0.4}, {"min": None, "max": 0.1}],
    **{
        f"{name}_constant": [{"value": [[[[0.5] * 9] * 11]], "axis": 1}, {"value": 2.0, "axis": 1}]
        for name in ("add", "mul")
    },
    "layer_norm": [
        {"num_features": 9, "eps": 0.01, "affine": True, "bias": True},
        {"num_features": 9, "eps": 0.01, "affine": True, "bias": False}
        | {"ends": [4, 9], "order": [3, 1, 2, 0, 8, 5, 6, 7, 4]},
        {"num_features": 9, "eps": 0.01, "affine": False, "bias": False}
        | {"ends": [2, 5, 9], "order": None},
    ],
    "rms_norm": [
        {"num_features": 9, "eps": 0.01, "affine": True},
        {"num_features": 9, "eps": None, "affine": True} | {"ends": [4, 9], "order": None},
    ],
    **{f"{name}_within": [{"dims": 2, "eps": 0.01}] for name in ("layer_norm", "rms_norm")},
    **{
        name: [{"axis": 1, "channels": 3, "shape": [1, 2], "fresh": 0.3}]
        for name in ("before", "behind")
    },
    "filter": [
        {"kernel": [[1.0, 2.0, 1.0], [0.5, 0.0, 1.0]], "stride": [1, 2], "padding": [1, 0]}
        | {"dilation": [1, 2]}
    ],
    "conv3d": [
        conv(kernel_size=[3, 2, 1], stride=[1, 2, 1], padding=[1, 0, 0], dilation=[1, 1, 2])
        | {"bias": bias}
        for bias in (True, False)
    ],
    "max_pool3d": [max_pool([2, 3, 2], [2, 2, 1], [1, 1, 0], [1, 1, 1], False)],
    "avg_pool3d": [
        {"kernel_size": [2, 3, 2], "stride": [2, 2, 1], "padding": [1, 1, 0], "ceil_mode": False}
        | {"count_include_pad": include, "divisor_override": None}
        for include in (True, False)
    ],
    **{
        f"adaptive_{kind}_pool3d": [{"output_size": [1, 1, 1]}, {"output_size": [2, 4, 5]}]
        for kind in ("avg", "max")
    },
    "normalize": [{"dim": 2, "p": 2.0, "eps": 1e-12}],
    **{name: [{"start": 1, "end": 3, "times": 33}] for name in ("tiled", "tiled_units")},
    "heads": [{"dim": 1, "sizes": [-1, 3]}],
    **{name: [{"dim": 1, "sizes": [-1, 3, 1]}] for name in ("packed", "packed_units")},
    "einsum": [{"equation": "bchw,bcgw->bchg"}],
    "attention": [
        {"p": 0.1, "causal": False, "scale": 0.3, "shared": False, "mask": None},
        {"p": 0.0, "causal": True, "scale": None, "shared": False, "mask": None},
        {"p": 0.0, "causal": False, "scale": None, "shared": False}
        | {"mask": encoded(torch.ones(11, 11).tril().log())},
    ],
    "add_tensor": [{"value": [[[0.5] * 9]], "axis": 1}],
    "mul_tensor": [{"value": encoded(torch.rand(1, 1, 11, 9)), "axis": 1}],
    "fill": [{"value": encoded(torch.rand(11, 9) > 0.5), "axis": 1, "number": -2.0}],
    **{
        name: [{"axis": 1, "channels": 3, "shape": [1, 1, 1], "fresh": 0.3}]
        for name in ("scale", "shift", "prelu")
    },
}
APART = ("input", "embedding")  # embeddings read integers: see test_transformers
CASES = [(op, attrs) for op in OPS if op not in APART for attrs in VARIANTS.get(op, [{}])]
FLAT = ("batch_norm1d", "unsqueeze")
VOLUME = [2, 3, 6, 8, 5]


def one_operation(op: str, attrs: dict[str, Any]) -> tuple[fx.GraphModule, Tensor]:
    """Return a network of one operation, in the form of `clnp.extract`, and an example."""
    shape = [2, 3] if op in FLAT else VOLUME if op.endswith("3d") else IMAGE
    nodes = [Node("x", "input", attrs={"shape": shape})]
    if OPS[op].role == "merge":
        nodes += [Node("a", "sigmoid", ("x",)), Node("b", op, ("a", "x"))]
    elif OPS[op].kind == "maths" or op in ("rdiv_number", "logsigmoid"):
        # Values from 0.5 to 1.5: onnxruntime's log(sigmoid(x)) is off by 1e-3 for x = -12.
        between = Node("c", "add_number", ("a",), {"value": 0.5})
        nodes += [Node("a", "sigmoid", ("x",)), between, Node("b", op, ("c",), attrs)]
    elif op in ("before", "behind"):
        flat = Node("a", "flatten", ("x",), {"start_dim": 2, "end_dim": 3})
        nodes += [flat, Node("b", op, ("a",), attrs)]
    elif op == "product":
        turned = Node("a", "permute", ("x",), {"dims": [0, 1, 3, 2]})
        nodes += [turned, Node("b", op, ("x", "a"), attrs)]
    elif op == "attention":
        nodes += [Node("a", "sigmoid", ("x",)), Node("b", op, ("x", "a", "x"), attrs)]
    elif op in ("concat", "parts", "picked", "einsum"):
        nodes += [Node("a", "sigmoid", ("x",)), Node("b", op, ("a", "x"), attrs)]
    elif op in ("pixel_shuffle", "channel_shuffle"):
        four = Node("a", "concat", ("x",) * 4, {"dim": 1, "sizes": [3] * 4})
        nodes += [four, Node("b", op, ("a",), attrs)]
    elif op == "squeeze":
        nodes += [Node("a", "insert_axis", ("x",), attrs), Node("b", op, ("a",), attrs)]
    else:
        nodes.append(Node("b", op, ("x",), attrs))
    graph = for_inference(Graph(tuple(nodes), "b"))
    layers = {}
    for node in graph.weighted:
        make: Any = OPS[node.op].make
        layers[node.name] = make(**arguments(node.op, node.attrs))
        if isinstance(layers[node.name], nn.BatchNorm1d | nn.BatchNorm2d):
            layers[node.name].running_mean.normal_()
            layers[node.name].running_var.uniform_(0.5, 2)
    network = build(graph, layers).eval().requires_grad_(False)
    network.meta[GRAPH] = graph
    return network, torch.zeros(shape)


def outputs(path: Path, x: Tensor) -> Tensor:
    """Compute the file's logits by the library it is meant for."""
    if path.suffix == ".pt2":
        got: Tensor = torch.export.load(path).module()(x)
        return got
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(session.run(["logits"], {"x": x.numpy()})[0])


def test_every_operation_has_a_case() -> None:
    assert {op for op, _ in CASES} == set(OPS) - set(APART)


class Together(nn.Module):
    """Operations side by side on one input: [B, 3, 11, 9] -> [B, all their outputs]."""

    def __init__(self, cases: list[tuple[str, dict[str, Any]]]) -> None:
        super().__init__()
        self.flat = [op in FLAT for op, _ in cases]
        self.parts = nn.ModuleList(one_operation(op, attrs)[0] for op, attrs in cases)

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.parts, self.flat, strict=True)
        found = [part(x[:, :, 0, 0] if flat else x) for part, flat in pairs]
        return torch.cat([y.flatten(1) for y in found], dim=1)


def refused(cases: list[tuple[str, dict[str, Any]]], path: Path) -> list[tuple[str, Any]]:
    """Return operations that a format lacks; the others together are correct in the file."""
    torch.manual_seed(0)
    network = Together(cases).eval()
    try:
        clnp.export(network, path, torch.zeros(IMAGE))
    except ExportError:
        if len(cases) == 1:
            return cases
        half = len(cases) // 2
        return refused(cases[:half], path) + refused(cases[half:], path)
    for batch in (1, 2, 7):
        x = 3 * torch.randn(batch, *IMAGE[1:])
        torch.testing.assert_close(outputs(path, x), network(x), rtol=1e-4, atol=1e-4)
    path.unlink()
    return []


def is_odd(op: str, attrs: dict[str, Any]) -> bool:
    """Return whether ONNX exporters may lack or mistake an operation with these attributes."""
    return op == "adaptive_max_pool2d" or attrs.get("divisor_override") is not None


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=needs_onnx)])
def test_every_operation_is_written_as_it_is_or_refused(suffix: str, tmp_path: Path) -> None:
    # One export for those that ONNX is known to have, because an export takes seconds.
    odd = [case for case in CASES if is_odd(*case)] if suffix == ".onnx" else []
    volumes = [case for case in CASES if case[0].endswith("3d")]
    common = [case for case in CASES if case not in [*odd, *volumes]]
    bad = refused(common, tmp_path / f"net{suffix}")
    assert not (bad and suffix == ".pt2")  # which holds torch's own operations
    for op, attrs in [*bad, *odd, *volumes]:
        network, example = one_operation(op, attrs)
        message, path = "", tmp_path / f"net{suffix}"
        try:
            clnp.export(network, path, example)
        except ExportError as error:
            message = str(error)
        if message:
            assert f"operation 'b' ({op}): {suffix}" in message
        else:
            x = 3 * torch.randn(7, *example.shape[1:])
            torch.testing.assert_close(outputs(path, x), network(x), rtol=1e-4, atol=1e-4)
            path.unlink()
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_every_operation_comes_back_from_json(tmp_path: Path) -> None:
    for op, attrs in CASES:
        network, example = one_operation(op, attrs)
        graph = network.meta[GRAPH]
        again = Graph.from_json(json.loads(json.dumps(graph.to_json())))
        layers = {node.name: network.get_submodule(node.name) for node in graph.weighted}
        x = torch.randn(example.shape)
        assert torch.equal(build(again, layers).eval()(x), network(x)), (op, attrs)


def pooled() -> tuple[fx.GraphModule, Tensor]:
    """Return a task's network with a divisor in its average pooling, and an example."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.AvgPool2d(2, divisor_override=3),
        nn.Conv2d(6, 6, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 3),
    )
    model = clnp.convert(net, torch.zeros(2, *SHAPE), verbose=False)
    model.begin_task()
    model.consolidate()
    return clnp.extract(model, 0), torch.zeros(1, *SHAPE)


@needs_onnx
def test_an_operation_that_onnx_gets_wrong_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    network, example = pooled()
    path = tmp_path / "net.onnx"
    path.write_text("old")
    message = ""
    try:
        clnp.export(network, path, example)
    except ExportError as error:
        message = str(error)
    if message:
        assert "operation '2' (avg_pool2d): .onnx" in message
        assert "use .pt2" in message
        assert path.read_text() == "old"
    else:  # a newer exporter that gets it right
        x = torch.randn(4, *SHAPE)
        torch.testing.assert_close(outputs(path, x), network(x), rtol=1e-4, atol=1e-5)
    clnp.export(network, tmp_path / "net.pt2", example)
    clnp.export(network, tmp_path / "net.safetensors", example)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=needs_onnx)])
def test_a_file_that_computes_something_else_is_refused(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated by adding a little to the results of every file."""
    narrow = clnp.extract(learned(mlp([20, 10]), "single", tasks=1), 0)
    name = {".pt2": "_run_pt2", ".onnx": "_run_onnx"}[suffix]
    run = getattr(export_check, name)
    monkeypatch.setattr(export_check, name, lambda path: lambda x: run(path)(x) + 0.1)
    with pytest.raises(
        ExportError, match=rf"operation '0' \(linear\): {suffix}.*differences up to 0\.1"
    ):
        clnp.export(narrow, tmp_path / f"net{suffix}", torch.zeros(1, 12))
    assert not list(tmp_path.iterdir())


class Sorted(nn.Module):
    """An operation that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x[:, None] * x[:, :, None]).real


class Branching(nn.Module):
    """A module that torch.export can't trace."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 100 else -x


@pytest.mark.parametrize(
    ("network", "suffix"),
    [
        (Branching(), ".pt2"),
        pytest.param(Branching(), ".onnx", marks=needs_onnx),
        pytest.param(Sorted(), ".onnx", marks=needs_onnx),
    ],
)
def test_what_a_format_can_not_hold_is_our_error(
    network: nn.Module, suffix: str, tmp_path: Path
) -> None:
    with pytest.raises(
        ExportError, match=rf"^{suffix}: this network can't be written.*use \."
    ) as e:
        clnp.export(network, tmp_path / f"net{suffix}", torch.zeros(2, 3))
    assert len(str(e.value)) < 600
    assert not list(tmp_path.iterdir())


EXAMPLES: dict[str, Any] = {
    "an int": 5,
    "None": None,
    "a list": [1.0],
    "no batch": torch.zeros(()),
    "shape": torch.zeros(2, 11),
    "rank": torch.zeros(2, 3, 12),
    "dtype": torch.zeros(2, 12, dtype=torch.float64),
    "integers": torch.zeros(2, 12, dtype=torch.int64),
    "device": torch.zeros(2, 12, device="meta"),
}


@pytest.mark.parametrize(
    "suffix", [".pt2", ".safetensors", pytest.param(".onnx", marks=needs_onnx)]
)
@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("ours", [True, False])
def test_examples_that_do_not_fit(kind: str, suffix: str, ours: bool, tmp_path: Path) -> None:
    network: nn.Module = clnp.extract(learned(mlp([6]), "multi", tasks=1), 0)
    if not ours:
        if kind == "rank":
            pytest.skip("a module that takes it")
        network = nn.Sequential(nn.Linear(12, 3), nn.Softmax(-1), nn.Unflatten(1, (3, 1)))
    with pytest.raises(DataError, match="example: "):
        clnp.export(network, tmp_path / f"net{suffix}", EXAMPLES[kind])
    assert not list(tmp_path.iterdir())


def test_an_empty_example_is_enough_and_contexts_do_not_matter(tmp_path: Path) -> None:
    narrow = clnp.extract(learned(mlp([6]), "multi", tasks=1), 0)
    x = torch.randn(3, 12)
    for context in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            path = clnp.export(narrow, tmp_path / "net.pt2", torch.zeros(0, 12))
        torch.testing.assert_close(outputs(path, x), narrow(x), rtol=1e-5, atol=1e-6)


@needs_onnx
def test_without_onnxruntime_the_interpreter_compares_and_without_both_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = clnp.extract(learned(mlp([6]), "multi", tasks=1), 0)
    find, calls = importlib.util.find_spec, []

    def reference(path: Path, make: Any = export_check._onnx_reference) -> Any:
        calls.append(path)
        return make(path)

    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "onnxruntime" else find(n, *a)
    )
    monkeypatch.setattr(export_check, "_onnx_reference", reference)
    clnp.export(narrow, tmp_path / "net.onnx", torch.zeros(1, 12))
    assert calls

    def broken(path: Path) -> Any:
        raise NotImplementedError("no such operator")

    broken.__name__ = "_onnx_reference"
    monkeypatch.setattr(export_check, "_onnx_reference", broken)
    (tmp_path / "net.onnx").unlink()
    with pytest.raises(
        ExportError, match=r"no installed package can run.*is not installed.*no such"
    ):
        clnp.export(narrow, tmp_path / "net.onnx", torch.zeros(1, 12))
    assert not list(tmp_path.iterdir())


NAMES = ["cat", "Löwe", "a, b"]


@pytest.mark.parametrize(
    "suffix", [".pt2", ".safetensors", pytest.param(".onnx", marks=needs_onnx)]
)
def test_class_names_travel_with_the_network(suffix: str, tmp_path: Path) -> None:
    narrow = clnp.extract(learned(mlp([6]), "multi", tasks=1), 0)
    path, example = tmp_path / f"net{suffix}", torch.zeros(1, 12)
    clnp.export(narrow, path, example, class_names=tuple(NAMES))
    assert read_names(path) == NAMES
    clnp.export(narrow, path, example)
    assert read_names(path) is None


def read_names(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return clnp.load_network(path).meta.get("class_names")
    if path.suffix == ".pt2":
        extra = {"class_names": ""}
        with contextlib.suppress(RuntimeError):
            torch.export.load(path, extra_files=extra)
        return json.loads(extra["class_names"]) if extra["class_names"] else None
    import onnx

    found = {p.key: p.value for p in onnx.load(path).metadata_props}
    return json.loads(found["class_names"]) if "class_names" in found else None


@pytest.mark.parametrize("names", ["abc", ["a", "b"], ["a", "b", 3], []])
def test_other_than_a_name_for_each_class_is_refused(names: Any, tmp_path: Path) -> None:
    narrow = clnp.extract(learned(mlp([6]), "multi", tasks=1), 0)
    with pytest.raises(ConfigError, match="class_names: expected"):
        clnp.export(narrow, tmp_path / "net.pt2", torch.zeros(1, 12), class_names=names)


@pytest.mark.parametrize(("network", "path"), [(5, "net.pt2"), (nn.ReLU(), 5)])
def test_what_is_no_network_or_no_path(network: Any, path: Any) -> None:
    with pytest.raises(ConfigError, match="expected a"):
        clnp.export(network, path, torch.zeros(1, 12))
