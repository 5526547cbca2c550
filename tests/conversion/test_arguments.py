# ruff: noqa: E402
"""What the caller may say of a model's inputs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from mlflow_trt import Input
from mlflow_trt.conversion.arguments import Spec, parse
from mlflow_trt.errors import SettingError

from .models import Cnn, Nested, Two


def foreign(shape, *, dynamic=False, dtype="f32", given=True, **more):
    """What a torch_tensorrt.Input looks like: its package can't be imported without a GPU."""
    return SimpleNamespace(
        shape_mode="DYNAMIC" if dynamic else "STATIC",
        shape=shape,
        dtype=SimpleNamespace(name=dtype),
        _explicit_set_dtype=given,
        **{"is_shape_tensor": False, "tensor_domain": (0.0, 2.0), "name": "", **more},
    )


def test_our_own_input():
    (spec,) = parse(Cnn(), [Input(((1, 4, 8), 3, 8, 8))], None).specs
    assert (spec.low, spec.high, spec.dtype) == ((1, 3, 8, 8), (8, 3, 8, 8), torch.float32)
    assert spec.dynamic == (True, False, False, False)


def test_one_input_needs_no_list():
    assert parse(Cnn(), Input((1, 3, 8, 8)), None).specs == parse(Cnn(), [Input((1, 3, 8, 8))], None).specs


def test_example_tensors_and_arrays_keep_their_values():
    tensor = torch.arange(6.0).view(2, 3)
    for value in (tensor, tensor.numpy()):
        (spec,) = parse(Cnn(), [value], None).specs
        assert spec.low == spec.high == (2, 3)
        assert torch.equal(spec.example, tensor)


def test_big_endian_array_is_refused_or_converted_by_numpy():
    (spec,) = parse(Cnn(), [np.arange(3, dtype="<f4")], None).specs
    assert spec.dtype == torch.float32


def test_torch_tensorrt_input_static_and_dynamic():
    shape = {"min_shape": (1, 3), "opt_shape": (4, 3), "max_shape": (8, 3)}
    dynamic = foreign(shape, dynamic=True, dtype="i64", shared_dims={0: "batch"})
    static, spec = parse(Two(torch.add), [foreign((2, 3)), dynamic], None).specs
    assert static.low == (2, 3)
    assert (spec.low, spec.high, spec.dtype, spec.symbols) == ((1, 3), (8, 3), torch.int64, {0: "batch"})


def test_torch_tensorrt_input_without_dtype_takes_the_models():
    (spec,) = parse(Cnn(), [foreign((1, 3, 8, 8), given=False)], None).specs
    assert spec.dtype is None


def test_torch_tensorrt_input_with_profiles():
    profiles = [
        {"min_shape": (1, 4), "opt_shape": (1, 4), "max_shape": (1, 4)},
        {"min_shape": (2, 4), "opt_shape": (8, 4), "max_shape": (16, 4)},
    ]
    envelope = {"min_shape": (1, 4), "opt_shape": (1, 4), "max_shape": (16, 4)}
    arguments = parse(Cnn(), [foreign(envelope, dynamic=True, profiles=profiles)], None)
    assert arguments.profiles == 2
    assert arguments.specs[0].range(1).opt == (8, 4)


def test_shape_tensors_are_refused():
    with pytest.raises(SettingError, match="shape tensor"):
        parse(Cnn(), [foreign((2,), is_shape_tensor=True)], None)


def test_names_lead_to_their_parameters():
    arguments = parse(Two(torch.sub), [Input((2,), name="b"), Input((3,), name="a")], None)
    assert not arguments.args
    assert {name: spec.low for name, spec in arguments.kwargs.items()} == {"b": (2,), "a": (3,)}


def test_names_in_order_stay_positional():
    arguments = parse(Two(torch.sub), [Input((2,), name="a"), Input((3,), name="b")], None)
    assert [spec.low for spec in arguments.args] == [(2,), (3,)]


@pytest.mark.parametrize(
    ("inputs", "kwargs", "words"),
    [
        ([Input((2,)), Input((2,), name="c")], None, "no parameter 'c'"),
        ([Input((2,)), Input((2,), name="a")], None, "given twice"),
        ([Input((2,), name="b"), Input((2,))], None, "Input 1 has no name"),
        ([object(), Input((2,))], None, r"inputs\[0\] is a object"),
        ([Input((2,))], [Input((2,))], "kwarg_inputs is a list"),
        (None, None, "no inputs"),
        ([Input(profiles=[((1, 1, 2),), ((2, 3, 4),)]), Input(profiles=[(1,), (2,), (3,)])], None, "profiles"),
    ],
)
def test_refused(inputs, kwargs, words):
    with pytest.raises(SettingError, match=words) as caught:
        parse(Two(torch.sub), inputs, kwargs)
    assert caught.value.expected
    assert caught.value.remedy


def test_nesting_and_constants_stay():
    arguments = parse(
        Nested(), [Input((2, 4)), {"m": Input((1, 3)), "n": torch.zeros(1, 3)}], {"flag": False, "ids": None}
    )
    assert set(arguments.args[1]) == {"m", "n"}
    assert arguments.kwargs == {"flag": False, "ids": None}
    assert all(isinstance(spec, Spec) for spec in arguments.specs)
    assert len(arguments.specs) == 3


def test_static_program_needs_no_inputs():
    program = torch.export.export(Cnn().eval(), (torch.zeros(2, 3, 8, 8),))
    assert parse(program, None, None).specs[0].low == (2, 3, 8, 8)


def test_dynamic_program_needs_inputs():
    program = torch.export.export(
        Cnn().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes={"x": {0: torch.export.Dim("n", min=1, max=8)}}
    )
    with pytest.raises(SettingError, match="dynamic dimensions"):
        parse(program, None, None)
