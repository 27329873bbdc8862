"""Trials on Ray; without Ray, only the error is tested."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import clnp
from clnp.errors import ConfigError, TrialError
from tests.clnp.cases import blobs
from tests.clnp.learner.test_fanout_grid import Heard, learner, same, told
from tests.clnp.parallel import trials

HERE = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HERE, reason="Ray is not installed (clnp[ray])")


@pytest.fixture(scope="module")
def two() -> Iterator[clnp.Workers]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray itself
        with clnp.Workers(2, executor="ray", threads=1) as workers:
            yield workers
    torch.set_num_threads(threads)


@pytest.mark.skipif(HERE, reason="Ray is installed")
def test_without_ray_the_error_names_the_extra() -> None:
    with pytest.raises(ConfigError, match=r'pip install "clnp\[ray\]"'):
        clnp.Workers(2, executor="ray")


@needs_ray
def test_trials_run_are_told_and_tried_again(two: clnp.Workers, tmp_path: Path) -> None:
    heard: list[tuple[object, ...]] = []
    orders = {f"trial {i}": (i,) for i in range(3)}
    results = two.run(trials.square, orders, lambda *event: heard.append(event))
    assert [value for value, _, _ in results.values()] == [0, 1, 4]
    assert {threads for _, _, threads in results.values()} == {1}
    assert sorted(heard) == [(f"trial {i}", "begun", i) for i in range(3)]
    for how in ("raise", "kill"):
        for name in ("once", "always"):
            (tmp_path / how / name).mkdir(parents=True)
        orders = {name: (tmp_path / how / name, n, how) for name, n in (("once", 1), ("always", 9))}
        with pytest.raises(TrialError, match="1 of 2 failed: always: ") as caught:
            two.run(trials.fail, orders)
        assert caught.value.results == {"once": "done"}


@needs_ray
def test_the_bits_are_those_of_one_process(two: clnp.Workers) -> None:
    heard = Heard()
    alone, many = learner(), learner(workers=two, callbacks=[heard])
    for k in range(2):
        assert told(alone.learn(blobs(k))) == told(many.learn(blobs(k)))
    assert same(alone, many)
    assert [record["done"] for record in heard.epochs] == [*range(1, 17), *range(1, 17)]
