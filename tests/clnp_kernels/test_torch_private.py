"""Private names of PyTorch stand in one file."""

import ast
from pathlib import Path

import torch

from clnp_kernels import torch_private

ROOT = Path(__file__).parents[2]
HOOKS = {*torch_private.MODULE_HOOKS, *torch_private.TENSOR_HOOKS}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_names(source: str) -> list[str]:
    """Return the private names of torch in a source text, with their lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            names = [f"{owner}.{node.attr}"] if owner.split(".")[0] == "torch" else []
            names += [node.attr] if node.attr in HOOKS else []
        elif isinstance(node, ast.Constant) and node.value in HOOKS:
            names = [str(node.value)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            names = [part for part in parts if is_private(part)]
        found += [f"{node.lineno}: {name}" for name in names]  # type: ignore[attr-defined]
    return found


def test_private_names_stand_in_one_file() -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for package in ("clnp", "clnp_kernels")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "torch_private.py" and (names := private_names(path.read_text()))
    }
    assert found == {}


def test_the_search_finds_them() -> None:
    source = "import torch\ntorch._C._x()\nfrom torch._dynamo import y\nlayer._forward_hooks\n"
    found = private_names(source)
    assert sorted(line.split(":")[0] for line in found) == ["2", "2", "3", "4"]
    assert private_names("import torch\ntorch.add(self._x, torch.__version__)\n") == []


def test_they_do_what_they_say() -> None:
    x = torch.ones(3)
    leaf = torch.ones(3, requires_grad=True)
    assert torch_private.any_requires_grad(1, [x, leaf])
    assert not torch_private.any_requires_grad(1, [x])
    with torch_private.below_autograd():
        assert not (leaf * 2).requires_grad
    inside: list[bool] = []
    torch.func.vmap(lambda t: inside.append(torch_private.within_transform()) or t)(x)
    assert inside == [True]
    assert not torch_private.within_transform()
    assert torch_private.has_kernel("aten::relu", "CPU")
    assert not torch_private.has_kernel("aten::relu", "IPU")
    layer = torch.nn.Linear(2, 2)
    assert all(hasattr(layer, name) for name in torch_private.MODULE_HOOKS)
    assert all(hasattr(x, name) for name in torch_private.TENSOR_HOOKS)
    assert torch_private.pre_hooks(layer) == []
    layer.register_forward_pre_hook(print)
    assert torch_private.pre_hooks(layer) == [print]
    assert torch_private.is_aten(torch.ops.aten.relu)
    assert torch_private.is_aten(torch.ops.aten.relu.default)
    assert not torch_private.is_aten(torch.relu)


def test_lists_of_tensors() -> None:
    one, two = (
        [torch.tensor([1.0, -2.0]), torch.tensor(3.0)],
        [torch.tensor([4.0, 8.0]), torch.tensor(2.0)],
    )
    for name in ("add", "mul", "div", "sub"):
        got = getattr(torch_private, f"foreach_{name}")(one, two)
        assert all(
            torch.equal(g, getattr(torch, name)(a, b))
            for g, a, b in zip(got, one, two, strict=True)
        )
    assert all(
        torch.equal(s, t.sign()) for s, t in zip(torch_private.foreach_sign(one), one, strict=True)
    )
    torch.testing.assert_close(torch_private.foreach_norm(one)[0], one[0].norm())
    changed = [t.clone() for t in one]
    torch_private.foreach_lerp_(changed, two, 0.5)
    torch_private.foreach_addcmul_(changed, one, two, -1.0)
    wanted = [(a + b) / 2 - a * b for a, b in zip(one, two, strict=True)]
    assert all(torch.equal(c, w) for c, w in zip(changed, wanted, strict=True))
    torch_private.foreach_copy_(changed, two)
    assert all(torch.equal(c, t) for c, t in zip(changed, two, strict=True))
