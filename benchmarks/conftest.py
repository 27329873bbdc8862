"""No time of the reference unasked, and who served in every record."""

from __future__ import annotations

import pytest

from benchmarks import served


@pytest.fixture(autouse=True)
def _served(request: pytest.FixtureRequest) -> None:
    if refusal := served.refusal():
        pytest.fail(refusal, pytrace=False)
    if "benchmark" in request.fixturenames:
        benchmark = request.getfixturevalue("benchmark")
        benchmark.extra_info["implementation"] = served.implementation("cpu")
