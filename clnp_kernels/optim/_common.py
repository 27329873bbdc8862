"""Base of the optimizers: checks of options and states, and the loop over the parameters."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_number, check_tensor
from ..errors import message


def check_rate(lr: float | Tensor) -> None:
    """Raise unless `lr` is a finite number, at least 0, or a floating-point tensor of one
    element.
    """
    if isinstance(lr, Tensor):
        check_tensor("lr", lr)
        if lr.numel() != 1:
            raise ValueError(message("lr.shape", list(lr.shape), "one element"))
        if lr.device.type == "cpu":
            check_number("lr", float(lr))
    else:
        check_number("lr", lr)


class CoupledL1(torch.optim.Optimizer):
    """Base of the optimizers. A state that is loaded is completed and checked before it is used.

    Attributes:
        entries: names of the tensors that `state` holds for a parameter, once it has a state.
    """

    entries: frozenset[str]
    # With it torch.amp.GradScaler passes scale and found_inf on and leaves the gradients as they
    # are. An attribute of the class, so that copies have it.
    _step_supports_amp_scaling = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state that `load_state_dict`, `pickle` or `copy` gives.

        A group takes the options that it lacks from the group in its place, so a state of
        `torch.optim.Adam` or `torch.optim.SGD` keeps this optimizer's `l1`.

        Raises:
            TypeError, ValueError: an option or a state that does not fit; nothing is changed.
        """
        defaults = state.get("defaults") or self.defaults
        own = getattr(self, "param_groups", None) or [defaults] * len(state["param_groups"])
        for i, (group, present) in enumerate(zip(state["param_groups"], own, strict=True)):
            for name, default in defaults.items():
                # torch adds defaults of its own when it loads a state, but not to the groups.
                group.setdefault(name, present.get(name, default))
            check_variant(f"param_groups[{i}]", group)
            self.check_options(group)
        params = [param for group in state["param_groups"] for param in group["params"]]
        for i, param in enumerate(params):
            if param in state["state"]:
                check_state(f"state[{i}]", param, state["state"][param], self.entries)
        super().__setstate__(state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options are checked.

        Raises:
            TypeError, ValueError: an option is out of its range.
        """
        self.check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise unless the options of a group are possible."""
        check_rate(options["lr"])
        for name in ("l1", "weight_decay"):
            check_number(name, options[name])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; return the loss that `closure` returns, or None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaler = {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
        for group, params, lr, l1 in _trained(self):
            grads = [param.grad for param in params if param.grad is not None]
            self._step_alike(group, params, grads, lr=lr, l1=l1, **scaler)
        return loss

    @abstractmethod
    def _step_alike(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], **common: Any
    ) -> None:
        """Step parameters of one device with equal options.

        Arguments:
            group: options.
            params, grads: the parameters and their gradients.
            common: arguments of the operator: lr and l1 (one for each parameter), grad_scale and
                found_inf, which `torch.amp.GradScaler` has set for this step.
        """


def check_variant(name: str, group: Mapping[str, Any]) -> None:
    """Raise if a group sets a variant of its optimizer that is not implemented."""
    way_out = "start with a fresh state"
    if group.get("amsgrad"):
        raise ValueError(message(f"{name}['amsgrad']", True, "False", way_out))
    if group.get("decoupled_weight_decay") and group["weight_decay"]:
        got = f"True with weight_decay={group['weight_decay']}"
        wanted = "False, as weight decay is coupled here"
        raise ValueError(message(f"{name}['decoupled_weight_decay']", got, wanted, way_out))


def check_state(name: str, param: Tensor, values: dict[str, Any], entries: Collection[str]) -> None:
    """Raise unless `values` are a state of the parameter; numbers of steps become tensors."""
    for entry in [entry for entry, value in values.items() if value is None]:
        del values[entry]  # torch.optim.SGD without momentum
    if values and set(values) != set(entries):
        way_out = "the state is another optimizer's: start with a fresh one"
        raise ValueError(message(name, sorted(values), f"{sorted(entries)} or nothing", way_out))
    if "step" in values:
        values["step"] = torch.as_tensor(values["step"], dtype=torch.float32).squeeze()
    for entry, value in values.items():
        shape = [] if entry == "step" else list(param.shape)
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if got != shape:
            way_out = (
                "a boundary between frozen and free channels has moved since the state was saved, "
                "or it is another model's: start with a fresh one"
            )
            raise ValueError(message(f"{name}['{entry}'].shape", got, f"{shape}", way_out))


class _Alike(NamedTuple):
    """Parameters that one call steps: a group with their options, and rate and alpha of each."""

    group: dict[str, Any]
    params: list[Tensor]
    lr: list[float | Tensor]
    l1: list[float]


def _trained(optimizer: torch.optim.Optimizer) -> Iterator[_Alike]:
    """Yield the parameters with gradients by device and options. Groups that differ in `lr` and
    `l1` only are one, so that one call steps them.

    Raises:
        TypeError: a gradient is sparse.
    """
    found: dict[Any, _Alike] = {}
    names = [name for name in optimizer.defaults if name not in ("lr", "l1")]
    for group in optimizer.param_groups:
        options = tuple(_key(group.get(name)) for name in names)
        for param in group["params"]:
            if param.grad is None:
                continue
            if param.grad.layout != torch.strided:
                wanted = "a dense gradient"
                raise TypeError(
                    message("param.grad", param.grad.layout, wanted, "use a dense layer")
                )
            alike = found.setdefault((param.device, options), _Alike(group, [], [], []))
            alike.params.append(param)
            alike.lr.append(group["lr"])
            alike.l1.append(group["l1"])
    yield from found.values()


def _key(option: Any) -> Any:
    """A key that is equal for equal options, and for tensors if they are one object: reading a
    number on the device would wait for it.
    """
    if isinstance(option, Tensor):
        return id(option)
    return tuple(option) if isinstance(option, list) else option
