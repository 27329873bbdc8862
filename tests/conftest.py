"""Fixtures for all tests."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """New tensors start as NaN, so an element that nothing writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def generator() -> torch.Generator:
    """A source of random numbers with a fixed seed."""
    return torch.Generator().manual_seed(1234)
