"""Fixtures of the tests of `clnp`."""

from collections.abc import Iterator

import pytest
import torch

from clnp import Workers


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same global generator."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def two() -> Iterator[Workers]:
    """Two workers for all tests that need some: starting them takes seconds."""
    with Workers(2, threads=1) as workers:
        yield workers
