"""A client of whatever server a module has, and a model whose only worker is at work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from .calling import Slow


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    from .calling import calling

    with calling(address) as client:
        yield client


@pytest.fixture
def slow() -> Iterator[Slow]:
    """Its only worker is at work on 0 until the gate opens."""
    from .calling import Slow, eventually

    model = Slow()
    first = model.batcher.submit({"x": np.float32([0])})
    eventually(lambda: model.gate.seen == [0])
    yield model
    model.gate.open.set()
    first.result(30)
    model.batcher.close()
