"""All tests of modules and optimizers start from memory that is not zero."""

import pytest


@pytest.fixture(autouse=True)
def _nan_memory(nan_memory: None) -> None:
    return None
