"""Input specifications: shapes, profiles, dtypes, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_trt.errors import SettingError
from mlflow_trt.inputs import DTYPES, Input, InputRange, dtype_name


def test_a_plain_shape_is_static():
    spec = Input((2, 3))

    assert spec.ranges == (InputRange((2, 3), (2, 3), (2, 3)),)
    assert spec.is_static
    assert (spec.rank, spec.dtype, spec.name) == (2, "float32", None)


def test_a_range_gives_min_opt_and_max():
    spec = Input(((1, 8, 32), 3), "float16", "x")

    assert spec.ranges == (InputRange((1, 3), (8, 3), (32, 3)),)
    assert not spec.is_static


def test_sizes_may_be_numpy_integers():
    assert Input((np.int64(2), (np.int32(1), 2, 3))) == Input((2, (1, 2, 3)))


def test_a_shape_that_is_no_sequence_is_refused():
    with pytest.raises(SettingError, match="The shape of an Input is 8"):
        Input(8)


def test_a_scalar_has_no_dimensions():
    assert Input(()).ranges == (InputRange((), (), ()),)
    assert Input(()).rank == 0


def test_profiles_of_different_static_shapes_are_not_static():
    assert Input(profiles=[(1, 4), (1, 4)]).is_static
    assert not Input(profiles=[(1, 4), (2, 4)]).is_static


@pytest.mark.parametrize(
    "shape",
    [(0,), (-1,), (1.5,), ("a",), ((1, 2),), ((1, 2, 3, 4),), ((0, 1, 2),), ((3, 2, 4),), ((1, 5, 4),), ((1, 2.0, 3),)],
)
def test_a_dimension_that_is_no_size_and_no_range_is_refused(shape):
    with pytest.raises(SettingError, match="Dimension 0"):
        Input(shape)


def test_the_message_names_the_position():
    with pytest.raises(SettingError, match=r"Dimension 2 .* is 0"):
        Input((1, 3, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither a shape nor profiles"),
        ({"shape": (1,), "profiles": [(1,)]}, "a shape and profiles"),
        ({"profiles": []}, "0 different ranks"),
        ({"profiles": [(1,), (1, 2)]}, "2 different ranks"),
    ],
)
def test_shape_and_profiles_exclude_each_other_and_agree_in_rank(arguments, message):
    with pytest.raises(SettingError, match=message):
        Input(**arguments)


@pytest.mark.parametrize(
    ("given_as", "name"),
    [
        ("float32", "float32"),
        ("float", "float32"),
        ("half", "float16"),
        ("long", "int64"),
        (np.float32, "float32"),
        (np.dtype("int64"), "int64"),
        (np.bool_, "bool"),
        (bool, "bool"),
        (int, "int32"),
        ("torch.bfloat16", "bfloat16"),
    ],
)
def test_a_dtype_may_be_a_name_or_an_object(given_as, name):
    assert dtype_name(given_as) == name


@pytest.mark.parametrize("name", DTYPES)
def test_torch_dtypes_have_the_same_names(name):
    torch = pytest.importorskip("torch")

    assert dtype_name(getattr(torch, name)) == name


@pytest.mark.parametrize("dtype", ["complex64", "float8", "str", np.complex64, None, 32])
def test_an_unknown_dtype_is_refused_with_the_known_ones(dtype):
    with pytest.raises(SettingError, match="bfloat16"):
        dtype_name(dtype)


def test_a_range_may_have_a_name():
    spec = Input((("batch", 1, 8, 32), 3, ["tokens", 8, np.int64(64), 128]), "int64")

    assert spec.ranges == (InputRange((1, 3, 8), (8, 3, 64), (32, 3, 128)),)
    assert spec.dimension_names == ("batch", None, "tokens")
    assert spec != Input(((1, 8, 32), 3, (8, 64, 128)), "int64")
    assert spec == Input((("batch", 1, 8, 32), 3, ("tokens", 8, 64, 128)), "int64")


def test_a_name_holds_in_every_profile():
    spec = Input(profiles=[(("batch", 1), 128), ((2, 16, 64), 128)])

    assert spec.dimension_names == ("batch", None)
    assert spec.ranges[0].max == (1, 128)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape": (("2d", 1, 2, 3),)}, "named '2d'"),
        ({"shape": (("a b", 1, 2, 3),)}, "named 'a b'"),
        ({"shape": (("größe", 1, 2, 3),)}, "named 'größe'"),
        ({"shape": (("", 1, 2, 3),)}, "named ''"),
        ({"shape": (("n", 1, 2),)}, "Dimension 0 .* is \\('n', 1, 2\\)"),
        ({"shape": (("n", 3, 2, 4),)}, "Dimension 0"),
        ({"shape": (("n",),)}, "Dimension 0"),
        ({"shape": (3, ("n", 8))}, "Dimension 1 of an Input is named 'n' and always 8"),
        ({"shape": (("n", 8, 8, 8),)}, "always 8"),
        ({"profiles": [(("n", 4),), (("n", 4),)]}, "always 4"),
        ({"profiles": [(("n", 1),), (("m", 4),)]}, "named 'm' and 'n' in its profiles"),
        ({"shape": (("n", 1, 2, 4), ("n", 1, 3, 4))}, "Dimensions 0 and 1 .* both named 'n', and are 1:2:4 and 1:3:4"),
        ({"profiles": [(("n", 1), ("n", 1)), ((2, 2, 2), (4, 4, 4))]}, "both named 'n'"),
        ({"shape": "n"}, "The shape of an Input is 'n'"),
    ],
)
def test_names_that_can_not_be_honoured_are_refused(arguments, words):
    with pytest.raises(SettingError, match=words) as caught:
        Input(**arguments)
    assert caught.value.expected
    assert caught.value.remedy


def test_one_name_may_stand_for_two_dimensions_of_an_input():
    assert Input((("n", 1, 2, 4), ("n", 1, 2, 4))).dimension_names == ("n", "n")


DIMENSIONS = st.one_of(
    st.integers(1, 64), st.lists(st.integers(1, 64), min_size=3, max_size=3).map(lambda n: tuple(sorted(n)))
)
NAMED = st.one_of(
    DIMENSIONS,
    st.tuples(st.sampled_from("abcd"), st.integers(1, 8), st.integers(9, 16), st.integers(17, 64)),
)


@given(shape=st.lists(NAMED, max_size=4, unique_by=lambda d: d[0] if isinstance(d, tuple) else id(d)))
def test_repr_holds_the_names(shape):
    spec = Input(shape)

    assert eval(repr(spec), {"Input": Input}) == spec


@given(
    shapes=st.integers(0, 4).flatmap(
        lambda rank: st.lists(st.lists(DIMENSIONS, min_size=rank, max_size=rank).map(tuple), min_size=1, max_size=3)
    ),
    dtype=st.sampled_from(DTYPES),
    name=st.sampled_from([None, "x"]),
)
def test_repr_is_the_specification_again(shapes, dtype, name):
    spec = Input(profiles=shapes, dtype=dtype, name=name)

    again = eval(repr(spec), {"Input": Input})

    assert again == spec
    assert hash(again) == hash(spec)


def test_specifications_differ_in_shape_dtype_or_name():
    assert Input((1,)) != Input((2,))
    assert Input((1,)) != Input((1,), "int64")
    assert Input((1,)) != Input((1,), name="x")
    assert Input((1,)) != (1,)
