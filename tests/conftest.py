"""Fixtures for all tests."""

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

try:
    import hypothesis
except ImportError:  # tests/gpu do without it
    pass
else:

    class TorchRandom:
        """Torch's global random numbers, for Hypothesis: each of its examples begins alike."""

        seed = staticmethod(torch.manual_seed)
        getstate = staticmethod(torch.get_rng_state)
        setstate = staticmethod(torch.set_rng_state)

    TORCH_RANDOM = TorchRandom()  # Hypothesis holds no more than a weak reference
    hypothesis.register_random(TORCH_RANDOM)
    # The same examples in every run, and none that depends on how busy the machine is.
    hypothesis.settings.register_profile(
        "clnp",
        derandomize=not os.environ.get("CLNP_LONG_TESTS"),
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("clnp")


def pytest_configure(config: pytest.Config) -> None:
    """Side by side (pytest-xdist), the processes of the tests share the threads of one. The splits
    and networks of tests are small on purpose; those of the documentation are not (test_readme.py).
    """
    for name in ("MarginWarning", "ChanceWarning"):
        config.addinivalue_line("filterwarnings", f"ignore::clnp.errors.{name}")
    full = "ignore:.* of channels (nearly )?full:clnp.errors.CapacityWarning"
    config.addinivalue_line("filterwarnings", full)
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, torch.get_num_threads() // workers)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that tests start


def seed(value: int) -> None:
    """Global random numbers do not depend on what ran before."""
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    seed(1)


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
