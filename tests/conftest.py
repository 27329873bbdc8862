"""Fixtures for all tests."""

import os
from collections.abc import Iterator

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Side by side (pytest-xdist), the processes of the tests share the threads of one. The splits
    of tests are small on purpose; those of the documentation are not (test_readme.py).
    """
    config.addinivalue_line("filterwarnings", "ignore::clnp.errors.MarginWarning")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, torch.get_num_threads() // workers)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that tests start


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
