"""Networks of a user's own file."""

from pathlib import Path

import pytest
import torch
from torch import nn

import clnp
from clnp.cli.config import Config, defaults, validate
from clnp.errors import ConfigError

CODE = """
from torch import nn

from parts import hidden


class Net(nn.Sequential):
    def __init__(self, classes, width=4):
        super().__init__(hidden(3, width), nn.ReLU(), nn.Linear(width, classes))


def by_shape(shape, classes):
    return nn.Linear(shape[0], classes)


def number():
    return 3
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "parts.py").write_text("from torch.nn import Linear as hidden\n")
    (tmp_path / "own.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    return tmp_path / "own.py"


def test_a_class_or_function_is_called_with_what_it_takes(path: Path) -> None:
    net = clnp.models.make(f"{path}:Net", 2, (3,), seed=0, width=5)
    assert [p.shape for p in net.parameters()] == [(5, 3), (5,), (2, 5), (2,)]
    again = clnp.models.make(f"{path}:Net", 2, (3,), seed=0, width=5)
    assert torch.equal(net[0].weight, again[0].weight)
    linear = clnp.models.make(f"{path}:by_shape", 2, (7,))
    assert isinstance(linear, nn.Linear)
    assert linear.weight.shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.py", "expected FILE.py:NAME"),
        ("own.py:", "expected FILE.py:NAME"),
        ("none.py:Net", "no such file"),
        ("own.py:Other", "expected Other in the file"),
        ("own.py:number", "expected a torch.nn.Module, got int"),
        ("broken.py:Net", "the file fails with ZeroDivisionError"),
    ],
)
def test_others_are_refused(path: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        clnp.models.make(str(path.parent / name), 2, (3,))


def test_an_unknown_option_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"own.py:Net.*can't be made .*depth"):
        clnp.models.make(f"{path}:Net", 2, (3,), depth=5)


def config(**changes: object) -> Config:
    return Config(**{**defaults("arrays"), **changes})  # type: ignore[arg-type]


def test_options_of_the_loss() -> None:
    assert config().loss_setting is None
    assert config(loss="mse").loss_setting == "mse"
    wanted = {"name": "cross_entropy", "weight": [1.0, 2.0], "ignore_index": 255}
    found = config(class_weights=(1.0, 2.0), ignore_label=255)
    validate(found)
    assert found.loss_setting == found.learner_arguments()["loss"] == wanted
    assert Config.from_dict(found.as_dict()) == found
    validate(config(loss="cross_entropy", class_weights="balanced"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"loss": "mse", "class_weights": "balanced"}, "--class-weights applies to --loss cross"),
        ({"loss": "bce", "ignore_label": 1}, "--ignore-label applies to --loss cross_entropy"),
        ({"class_weights": "even"}, "--class-weights: expected balanced or a list of numbers"),
        ({"class_weights": (1.0, 0.0)}, "--class-weights: expected balanced or a list of numbers"),
        ({"class_weights": ()}, "--class-weights: expected balanced or a list of numbers"),
    ],
)
def test_bad_options_of_the_loss_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        validate(config(**changes))
