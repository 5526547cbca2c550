"""Tests of the registry take every machine for one without a GPU, but for those that are about one."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") is None:
        request.getfixturevalue("without_gpu")
