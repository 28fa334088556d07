"""The worked examples for every test that asks for `golden`."""

from __future__ import annotations

import pytest

from tests.analytics.golden import GOLDEN, Golden, golden_case


@pytest.fixture(scope="session", params=["agents", "cluster"])
def golden(request: pytest.FixtureRequest) -> Golden:
    if not GOLDEN.is_dir():
        pytest.skip("the worked examples are not beside this checkout (../shared/golden)")
    return golden_case(request.param)
