"""Properties of the Triton kernels' sources. Needs no triton and no GPU."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from clnp_kernels import _register, chooser, cuda_kernels, support, triton_kernels
from clnp_kernels.triton_kernels import tiles

FOLDER = Path(triton_kernels.__file__).parent
X = torch.ones(4, 4)


def has_product(tree: ast.AST) -> bool:
    """Whether a product is computed in an expression."""
    return any(isinstance(node, ast.Attribute) and node.attr == "dot" for node in ast.walk(tree))


def loaded(kernel: ast.AST) -> set[str]:
    """Names that stand for what was loaded, and for no product, in a kernel."""
    found: dict[str, bool] = {}
    for node in ast.walk(kernel):
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in ast.walk(ast.Module(targets, [])):  # type: ignore[arg-type]
                if isinstance(name, ast.Name):
                    found[name.id] = found.get(name.id, False) or has_product(node.value)
    return {name for name, product in found.items() if not product}


def transposes(tree: ast.AST) -> list[ast.AST]:
    """`trans`, `permute` and `.T` within functions that Triton compiles, but for the `.T` of what
    was loaded.
    """
    kernels = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any("jit" in ast.unparse(one) for one in node.decorator_list)
    ]
    return [
        node
        for kernel in kernels
        for node in ast.walk(kernel)
        if isinstance(node, ast.Attribute) and node.attr in ("trans", "permute", "T")
        if not (isinstance(node.value, ast.Name) and node.value.id in loaded(kernel))
    ]


def test_transposes_are_found() -> None:
    code = "@triton.jit\ndef f(a):\n    return tl.dot(tl.trans(tl.dot(a, a)), a.T)\n"
    assert len(transposes(ast.parse(code))) == 2
    code = "@triton.jit\ndef f(p):\n    a, b = p.load(0), p.load(1)\n    c = tl.dot(a, b.T)\n"
    assert transposes(ast.parse(code)) == []
    assert len(transposes(ast.parse(f"{code}    return tl.dot(a, c.T)\n"))) == 1
    assert transposes(ast.parse(code.replace("@triton.jit", ""))) == []


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_no_product_is_transposed(file: Path) -> None:
    """triton 3.4 to 3.7 multiplied the transposed result of a product wrongly on sm_90. No kernel
    needs that; one that will has to be gated by version.
    """
    assert transposes(ast.parse(file.read_text())) == []


@pytest.fixture
def backends() -> Iterator[tuple[Any, Any]]:
    """Settings of convolutions and of products of matrices, restored afterwards."""
    found: tuple[Any, Any] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [one.fp32_precision for one in found]
    yield found
    for one, precision in zip(found, before, strict=True):
        one.fp32_precision = precision


def test_convolutions_have_a_precision_of_their_own(backends: tuple[Any, Any]) -> None:
    """torch allows tf32 to cuDNN by default, and to products of matrices on demand."""
    for conv, matmul in (("tf32", "ieee"), ("ieee", "tf32")):
        for one, precision in zip(backends, (conv, matmul), strict=True):
            one.fp32_precision = precision
        assert tiles.precision_of(torch.float32, conv=True) == conv
        assert tiles.precision_of(torch.float32) == matmul
        assert tiles.precision_of(torch.bfloat16, conv=True) == "half"


def test_pointwise_convolutions_multiply_as_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from clnp_kernels.triton_kernels import _launch
    from clnp_kernels.triton_kernels import masked_conv2d as kernels

    asked: list[bool] = []

    def precision_of(dtype: torch.dtype, *, conv: bool = False) -> str:
        asked.append(conv)
        return "ieee"

    device = _launch.Device(80, 4, 1 << 17)
    monkeypatch.setattr(_launch, "describe", lambda _: device)
    monkeypatch.setattr(_launch, "launch", lambda *_: None)
    monkeypatch.setattr(tiles, "precision_of", precision_of)
    x = torch.empty(2, 8, 4, 4, device="meta")
    weights = (torch.empty(4, 4, 1, 1, device="meta"), torch.empty(4, 8, 1, 1, device="meta"))
    geometry = ([1, 1], [0, 0], [1, 1], False)
    kernels.masked_conv2d_fwd(x, *weights, None, None, *geometry, "none", False)
    grad = torch.empty(2, 4, 4, 4, device="meta")
    kernels.masked_conv2d_dgrad(grad, x, weights[1], 4, *geometry)
    kernels.masked_conv2d_wgrad(grad, x, [1, 1], *geometry, False)
    assert asked == [True] * 3
    assert not tiles.within_convolution()


def test_a_measured_tile_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (90, "half", 512, (512,), True, 132, 1 << 20)
    usual = tiles.choose(*arguments)
    with tiles.forced((16, 16, 16, 1, 1)):
        assert tiles.choose(*arguments) == (16, 16, 16, 1, 1)
    assert tiles.choose(*arguments) == usual


def test_rocm_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls its GPUs "cuda" too."""
    support.unsupported_device.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.2")
    reason = support.unsupported_device(torch.device("cuda:0"))
    support.unsupported_device.cache_clear()
    assert "ROCm" in reason
    for module in (triton_kernels, cuda_kernels):
        with monkeypatch.context() as patch:
            patch.setattr(module, "unsupported_device", lambda _: reason)
            assert module.unsupported(X) == reason
    assert support.unsupported_device(torch.device("cpu")) == ""


def test_a_triton_that_does_not_import_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed but broken: PyTorch serves, with one warning, and no error in a step."""
    monkeypatch.setattr(chooser, "absent", {})
    monkeypatch.setattr(_register, "_warned", set())
    offers = {"torch": "slices.channel_activity", "triton": "no_such_module"}
    monkeypatch.setitem(chooser.OFFERS, "channel_activity", offers)
    serve = _register._cuda_server("channel_activity")
    with chooser.prefer("triton"):
        with pytest.warns(RuntimeWarning, match="No module named .*no_such_module"):
            assert serve(X, 1).tolist() == [4.0] * 4
        assert serve(X, 1).tolist() == [4.0] * 4
