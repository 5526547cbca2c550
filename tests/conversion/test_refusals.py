from __future__ import annotations

from mlflow_trt.conversion.refusals import not_built, unsupported


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
