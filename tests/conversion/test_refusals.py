from __future__ import annotations

import pytest

from mlflow_trt.conversion.refusals import neither, not_built, not_parsed, unsupported
from mlflow_trt.errors import ConversionError, ConverterError, UnsupportedOperatorError


def test_operators_are_named_with_their_place_and_a_way_round():
    error = unsupported(["aten.a", "aten.b"], {"aten.b": " at layer.2"}, ["aten.a"])
    assert error.operators == ("aten.a", "aten.b")
    assert "2 operators that Torch-TensorRT cannot convert:\n  aten.a\n  aten.b at layer.2\n" in str(error)
    assert "aten.a: has a converter that is not declared for dynamic sizes" in str(error)
    assert "decompose_attention" not in str(error)
    assert "try decompose_attention=True" in str(unsupported(["aten.scaled_dot_product_attention"], {}, []))


def test_tensorrt_is_quoted_once():
    error = not_built(RuntimeError("returned None"), "conv (aten.conv2d)", ["no room", "no room", "too large"])
    assert "at conv (aten.conv2d): RuntimeError: returned None\n  TensorRT: no room\n  TensorRT: too large\n" in str(
        error
    )


def test_a_driver_that_is_too_old_is_named_as_the_cause():
    """As TensorRT-RTX 1.6.1.120 says it of a refittable network, with a driver of CUDA 13.0."""
    error = not_built(RuntimeError("returned None"), None, ["Myelin ([cudamod.cpp:31: CUDAMod] CUDA error 222 loading"])
    assert str(error).startswith("This GPU's driver does not take the code")
    assert "To do: update the driver, or install an older release of TensorRT" in str(error)


def test_a_converter_that_failed_is_told_from_a_lack_of_memory():
    """Only after the first is another converter tried."""
    assert type(not_built(RuntimeError("returned None"), None, ["Myelin: no tactic"])) is ConverterError
    for message in ("Cuda Runtime (out of memory)", "[defaultAllocator.cpp] OutOfMemory", "std::bad_alloc"):
        error = not_built(RuntimeError("returned None"), None, [message])
        assert type(error) is ConversionError
        assert "not enough memory" in error.found
    assert type(not_built(MemoryError(), None, [])) is ConversionError


def test_a_parsers_words_are_told_with_node_and_operator():
    error = not_parsed(
        [
            ("Resize", "up", "UNSUPPORTED_NODE_ATTR", "no antialias"),
            ("DFT", "f", "INTERNAL_ERROR", "DFT is not supported"),
        ]
    )
    assert isinstance(error, UnsupportedOperatorError)
    assert error.operators == ("onnx.Resize", "onnx.DFT")
    assert (
        "2 operators that TensorRT's parser does not take:\n  Resize at up: no antialias\n  DFT at f: DFT is"
        in error.found
    )
    assert type(not_parsed([("", "", "MODEL_DESERIALIZE_FAILED", "no protobuf")])) is ConverterError


@pytest.mark.parametrize(
    "second", [ConverterError("It differs."), UnsupportedOperatorError("No DFT.", operators=("onnx.DFT",))]
)
def test_where_neither_converts_both_say_why(second):
    first = UnsupportedOperatorError("No rfft.", "others", "replace it", ("aten.rfft",))
    error = neither(first, second)
    assert isinstance(error, UnsupportedOperatorError)
    assert error.operators == ("aten.rfft", *getattr(second, "operators", ()))
    assert f"Torch-TensorRT: No rfft.\nONNX: {second.found}" in error.found
    assert type(neither(ConverterError("It fails."), ConverterError("It differs."))) is ConverterError
