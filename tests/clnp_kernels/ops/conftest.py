"""All tests of operators start from memory that is not zero."""

import pytest

from clnp_kernels import info


@pytest.fixture(autouse=True)
def _nan_memory(nan_memory: None) -> None:
    return None


@pytest.fixture
def compiled() -> None:
    """Skip where the reference serves."""
    if info.implementations()["masked_linear_fwd", "cpu"][0] == "reference":
        pytest.skip("the compiled library is what is tested")
