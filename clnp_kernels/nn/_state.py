"""Base of the layers with an active and a free part: activation, calls and loading a state."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._checks import check_choice
from ..errors import message
from ..ops._masked import ACTIVATIONS
from ..reference.masked_conv2d import memory_format


class Bounded(nn.Module):
    """A module whose boundaries are the shapes of its tensors.

    A state with other boundaries can be loaded: tensors change their shapes and stay the same
    objects.

    Attributes:
        names: of the tensors.
    """

    names: ClassVar[Sequence[str]]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Take the boundaries of the state.

        Nothing is changed if the state lacks a tensor (`load_state_dict` reports that) or if the
        shapes are wrong.
        """
        names = [name for name in self.names if getattr(self, name) is not None]
        entries = {name: state_dict.get(prefix + name) for name in names}
        new = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
        if len(new) == len(names):
            problem = self._nonsense({name: list(value.shape) for name, value in new.items()})
            if problem:
                args[4].append(f"{prefix[:-1] or type(self).__name__}: {problem}")
                return
            for name, value in new.items():
                if getattr(self, name).shape != value.shape:
                    _reshape(getattr(self, name), value.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _nonsense(self, shapes: Mapping[str, list[int]]) -> str:
        """Describe the first wrong shape of a state, or return ''."""
        raise NotImplementedError


class Partial(Bounded):
    """A layer with an active and a free part, and an activation behind it."""

    def __init__(self, activation: str, full_input_grad: bool) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        self.activation, self.full_input_grad, self.skip_active = activation, full_input_grad, False

    def forward(self, x: Tensor) -> Tensor:
        """x -> y, all outputs, or the free ones only with `skip_active`."""
        y = self._call(x, activity=False)
        assert isinstance(y, Tensor)
        return y

    def forward_with_activity(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`, and per output the sum of `|y|` over everything else: [O], float32 or
        float64.
        """
        result = self._call(x, activity=True)
        assert isinstance(result, tuple)
        return result

    def _call(self, x: Tensor, activity: bool) -> Tensor | tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _activation_text(self) -> str:
        return "" if self.activation == "none" else f", activation={self.activation!r}"


def _reshape(own: Tensor, shape: torch.Size) -> None:
    """Give a parameter or buffer another shape; an optimizer still holds the same tensor."""
    dtype, layout = own.dtype, memory_format(own)
    own.grad = None
    # A graph that is still alive (of the last loss) keeps autograd's record of the old shape; only
    # another dtype makes autograd record the shape anew.
    other = torch.float32 if dtype == torch.float64 else torch.float64
    own.data = torch.empty(0, dtype=other, device=own.device)
    own.data = torch.empty(shape, dtype=dtype, device=own.device, memory_format=layout)


def wrong_dimensions(shapes: Mapping[str, list[int]], weight_ndim: int) -> str:
    """Describe the first wrong number of dimensions of weights and vectors, or return ''."""
    for name, shape in shapes.items():
        ndim = weight_ndim if name.endswith("weight") else 1
        if len(shape) != ndim:
            return message(f"{name}.shape", shape, f"{ndim} dimensions")
    return ""
