from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interfaces import IMAGE_PROFILES, IMAGES, PAIR, PAIR_PROFILES, branch, interface, leaf, pair, span, tensor

from mlflow_trt.errors import InputError, ManifestError
from mlflow_trt.plan.signature import CallSignature, batch_size, batch_symbols


def images(n=2, dtype=np.float32):
    return np.zeros((n, 3, 4), dtype)


@pytest.fixture
def call_signature():
    return CallSignature(IMAGES, IMAGE_PROFILES)


@pytest.fixture
def pairs():
    return CallSignature(PAIR, PAIR_PROFILES)


BAD = {
    "dtype": ({"x": images(dtype=np.float64)}, "dtype float64", "float32"),
    "dtype, integers": ({"x": images(dtype=np.int32)}, "dtype int32", "float32"),
    "dtype, half": ({"x": images(dtype=np.float16)}, "dtype float16", "float32"),
    "rank below": ({"x": images()[0]}, r"2 dimensions", r"3: \(batch, 3, 4\)"),
    "rank above": ({"x": images()[None]}, r"4 dimensions", r"3: \(batch, 3, 4\)"),
    "fixed size": ({"x": np.zeros((2, 3, 5), np.float32)}, "size 5 in dimension 2", "4, which is fixed"),
    "above max": ({"x": images(9)}, r"size 9 in dimension 0 \(batch\) is above", "1 to 8"),
    "batch 0": ({"x": images(0)}, r"size 0 in dimension 0 \(batch\) is below", "1 to 8"),
    "name": ({"y": images()}, "missing: x; not known: y", "exactly x"),
    "extra": ({"x": images(), "y": images()}, "not known: y", "exactly x"),
    "missing": ({}, "missing: x", "exactly x"),
    "strings": ({"x": np.full((2, 3, 4), "a")}, "dtype <U1", "float32"),
    "objects": ({"x": [[object()]]}, "of objects", "float32"),
    "ragged": ({"x": [[1.0], [1.0, 2.0]]}, "unequal lengths", "rectangular"),
    "text": ({"x": "image.png"}, "a str of", "float32"),
    "none": ({"x": None}, "a NoneType", "float32"),
    "complex list": ({"x": [1j]}, "of complex128", "float32"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(call_signature, case):
    tensors, found, expected = BAD[case]
    with pytest.raises(InputError) as caught:
        call_signature.check(tensors)
    assert caught.match(found)
    assert re.search(expected, caught.value.expected), caught.value.expected
    assert caught.value.remedy


BAD_PAIRS = {
    "sizes differ": (
        {"ids": pair(2, 8)["ids"], "mask": pair(2, 9)["mask"]},
        r"9 in dimension 1 \(length\), and 'ids' has 8",
    ),
    "batches differ": (
        {"ids": pair(2, 8)["ids"], "mask": pair(3, 8)["mask"]},
        r"'mask' has the shape \(3, 8\): 3 in dimension 0 \(batch\), and 'ids' has 2",
    ),
    "between the profiles": (pair(1, 64), "above the maximum"),
    "above both": (pair(33, 8), "above the maximum"),
    "length 0": (pair(2, 0), "below the minimum"),
    "mask of numbers": ({**pair(2, 8), "mask": np.ones((2, 8), np.int64)}, "dtype int64"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_pairs(pairs, case):
    tensors, found = BAD_PAIRS[case]
    with pytest.raises(InputError, match=found):
        pairs.check(tensors)


def test_a_refused_shape_is_refused_again(call_signature):
    for _ in range(2):
        with pytest.raises(InputError):
            call_signature.check({"x": images(9)})


def test_empty_batch_without_profiles():
    with pytest.raises(InputError, match="empty"):
        CallSignature(IMAGES, ()).check({"x": images(0)})
    assert CallSignature(IMAGES, ()).check({"x": images(1000)}).profile == 0


GOOD = {
    "plain": images(),
    "max": images(8),
    "nan": np.full((2, 3, 4), np.nan, np.float32),
    "infinite": np.full((2, 3, 4), np.inf, np.float32),
    "fortran": np.asfortranarray(images()),
    "strided": images(4)[::2],
    "zero strides": np.broadcast_to(np.float32(1), (2, 3, 4)),
    "big-endian": images().astype(">f4"),
    "list": images().tolist(),
    "list of integers": np.ones((2, 3, 4), int).tolist(),
    "list of arrays": list(images()),
}


@pytest.mark.parametrize("case", GOOD)
def test_good_input(call_signature, case):
    call = call_signature.check({"x": GOOD[case]})
    assert call.shapes == (np.shape(GOOD[case]),)
    np.testing.assert_array_equal(call.arrays[0], GOOD[case])


def test_arrays_are_not_copied(call_signature):
    x = images()
    x.flags.writeable = False
    assert call_signature.check({"x": x}).arrays[0] is x


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        ("float32", 1.5, True),
        ("float32", 2, True),
        ("float32", True, False),
        ("int64", 3, True),
        ("int64", 1.5, False),
        ("int32", 1 << 40, False),
        ("uint8", 255, True),
        ("uint8", -1, False),
        ("bool", True, True),
        ("bool", 1, False),
        ("float32", np.float32(1), True),
        ("float32", np.float64(1), False),
    ],
)
def test_python_numbers(dtype, value, fits):
    call_signature = CallSignature(interface([tensor("n", (), dtype)], [tensor("y", ())]), ())
    if fits:
        found = call_signature.check({"n": value}).arrays[0]
        assert (found.dtype, found.shape) == (np.dtype(dtype), ())
        assert found == value
    else:
        with pytest.raises(InputError):
            call_signature.check({"n": value})


def test_one_bare_array_for_one_input(call_signature, pairs):
    x = images()
    assert call_signature.named(x) == {"x": x}
    with pytest.raises(InputError, match="2 inputs ids, mask"):
        pairs.named(x)


# --- profiles ---


@pytest.mark.parametrize(
    ("batch", "length", "profile"),
    [(1, 8, 0), (2, 16, 0), (2, 32, 0), (3, 32, 1), (2, 128, 1), (32, 128, 1), (2, 8, 0)],
)
def test_best_profile(pairs, batch, length, profile):
    assert pairs.check(pair(batch, length)).profile == profile


def test_first_of_equal_profiles():
    assert CallSignature(IMAGES, IMAGE_PROFILES * 3).check({"x": images()}).profile == 0


SPANS = st.tuples(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40)).map(
    lambda t: span((t[0],), (t[0] + t[1],), (t[0] + t[1] + t[2],))
)


@given(st.lists(SPANS, min_size=1, max_size=4), st.integers(1, 130))
def test_chosen_profile_holds_the_size_and_is_nearest(spans, size):
    call_signature = CallSignature(interface([tensor("x", ("n",))], [tensor("y", ("n",))]), [{"x": s} for s in spans])
    fitting = {i: abs(math.log(size / s.opt[0])) for i, s in enumerate(spans) if s.min[0] <= size <= s.max[0]}
    if not fitting:
        with pytest.raises(InputError):
            call_signature.profile_of(((size,),))
        return
    chosen = call_signature.profile_of(((size,),))
    assert chosen in fitting
    assert fitting[chosen] <= min(fitting.values()) + 1e-12
    assert (
        chosen
        == call_signature.profile_of(((size,),))
        == CallSignature(call_signature.interface, call_signature.profiles).profile_of(((size,),))
    )


def test_endless_new_shapes_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("mlflow_trt.plan.signature._KNOWN_SHAPES", 10)
    call_signature = CallSignature(
        interface([tensor("x", ("n",))], [tensor("y", ("n",))]), [{"x": span((1,), (5,), (1000,))}]
    )
    for n in range(1, 500):
        call_signature.profile_of(((n,),))
    assert len(call_signature._known) <= 10


# --- structure ---


def test_contradictory_interfaces():
    with pytest.raises(ManifestError, match="'missing'"):
        CallSignature(interface([tensor("x", (1,))], [tensor("y", (1,))], result=leaf("missing")), ())
    with pytest.raises(ManifestError, match="keys"):
        CallSignature(interface([tensor("x", (1,))], [tensor("y", (1,))], result=branch("dict", leaf("y"))), ())
    for dtype in ("float8", "bfloat16"):
        with pytest.raises(ManifestError, match=dtype):
            CallSignature(interface([tensor("x", (1,), dtype)], [tensor("y", (1,))]), ())


def test_batch():
    assert batch_symbols(PAIR) == ("batch",)
    assert batch_size(PAIR, pair(3, 5)) == 3
    fixed = interface([tensor("x", (1, "n"))], [tensor("y", (1,))])
    assert batch_symbols(fixed) == ()
    assert batch_size(fixed, {"x": np.ones((1, 2))}) is None
