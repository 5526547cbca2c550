"""Bodies that are put together piece by piece, as they arrive."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_trt.serving.http import body
from mlflow_trt.serving.http.body import BodyBuffer


@pytest.fixture(scope="module", autouse=True)
def _small():
    """What counts as large is so here after a few bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "SMALL", 10)
        yield


@given(st.lists(st.binary(max_size=8), max_size=8))
def test_all_of_it_in_its_order(chunks):
    whole = b"".join(chunks)
    buffer = BodyBuffer(len(whole))
    for number, chunk in enumerate(chunks, 1):
        buffer.append(chunk)
        assert buffer.size == sum(map(len, chunks[:number]))
    assert bytes(buffer.take()) == whole


@pytest.mark.parametrize(("size", "kind"), [(10, bytearray), (11, memoryview)])
def test_what_is_small_is_joined_and_what_is_large_lies_in_its_place(size, kind):
    buffer = BodyBuffer(50)
    buffer.append(bytes(size - 1))
    buffer.append(b"x")
    taken = buffer.take()
    assert (type(taken), len(taken)) == (kind, size)


@pytest.mark.parametrize("size", [4, 40])
def test_it_may_be_written(size):
    """PyTorch would copy a tensor that may not."""
    buffer = BodyBuffer(size)
    buffer.append(bytes(size))
    assert np.frombuffer(buffer.take(), np.float32).flags.writeable


def test_as_much_as_was_announced_and_no_more():
    buffer = BodyBuffer(20)
    buffer.append(bytes(20))
    with pytest.raises(ValueError, match="assignment"):
        buffer.append(b"x")
