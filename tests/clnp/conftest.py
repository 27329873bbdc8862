"""Fixtures of the tests of `clnp`."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same global generator."""
    torch.manual_seed(0)
