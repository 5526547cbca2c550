from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_trt.errors import InputError, ManifestError
from mlflow_trt.plan import casts
from mlflow_trt.plan.dtypes import STORAGE

torch = pytest.importorskip("torch", reason="bfloat16 is compared with torch's")


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_bfloat16_rounds_as_torch_does(values):
    array = np.array(values, np.float32)
    bits = casts.to_bfloat16(array)
    want = torch.from_numpy(array).to(torch.bfloat16)
    np.testing.assert_array_equal(casts.from_bfloat16(bits), want.float().numpy())


def test_every_bfloat16_survives():
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = casts.from_bfloat16(bits)
    back = casts.to_bfloat16(wide)
    nan = np.isnan(wide)
    np.testing.assert_array_equal(back[~nan], bits[~nan])
    assert np.isnan(casts.from_bfloat16(back[nan])).all()


def test_halves_round_to_even():
    ties = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)
    assert casts.to_bfloat16(ties).tolist() == [0x3F80, 0x3F82]


def test_shapes_and_layouts_are_kept():
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    assert casts.to_bfloat16(array).shape == (3, 2)
    np.testing.assert_array_equal(casts.from_bfloat16(casts.to_bfloat16(array)), array)
    assert casts.to_bfloat16(np.float32(1)).shape == ()


@pytest.mark.parametrize("name", ["float8", "int4", "complex64"])
def test_dtypes_that_arrays_cant_hold_are_refused(name):
    with pytest.raises(ManifestError, match=name):
        casts.storage(name, "'x'")


@pytest.mark.parametrize(("public", "binding"), [("int64", "int32"), ("int32", "int8"), ("int64", "uint8")])
def test_integers_too_large_for_the_engine_are_refused(public, binding):
    encode = casts.encoder(public, binding, "n")
    out = np.zeros(2, STORAGE[binding])
    limits = np.iinfo(out.dtype)
    encode(np.array([limits.min, limits.max], public), out)
    assert out.tolist() == [limits.min, limits.max]
    for value in (limits.min - 1, limits.max + 1):
        with pytest.raises(InputError, match=binding):
            encode(np.array([0, value], public), out)


def test_same_dtype_is_copied_bit_for_bit():
    array = np.array([np.nan, -0.0, 1e-45], ">f4")
    out = np.empty(3, np.float32)
    casts.encoder("float32", "float32", "x")(array, out)
    np.testing.assert_array_equal(out.view(np.uint32), array.astype(np.float32).view(np.uint32))
    answer = casts.decoder("float32", "float32")(out)
    assert not np.shares_memory(answer, out)


def test_float64_is_rounded():
    out = np.empty(1, np.float32)
    casts.encoder("float64", "float32", "x")(np.array([0.1]), out)
    assert out[0] == np.float32(0.1)
    assert casts.decoder("float64", "float32")(out).dtype == np.float64
