"""Whether a request fits the model that it asks: names, datatypes, wanted outputs."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mlflow_trt.errors import InputError
from mlflow_trt.serving.protocol.inference_request import InferenceRequest, fit
from mlflow_trt.serving.protocol.json_body import ProtocolError, decode

from .bodies import body, entry, interface, same, tensor

MODEL = interface(
    [tensor("x"), tensor("half", binding_dtype="float16"), tensor("brain", binding_dtype="bfloat16")], [tensor("y")]
)


def request_for_model(x="FP32", half="FP32", brain="FP32", outputs=None, **more):
    inputs = {"x": x, "half": half, "brain": brain, **more}
    entries = [entry(name=name, datatype=datatype) for name, datatype in inputs.items() if datatype]
    return decode(body(*entries, **({"outputs": outputs} if outputs else {})), None)


@pytest.mark.parametrize(("half", "brain"), [("FP32", "FP32"), ("FP16", "BF16"), ("FP16", "FP32")])
def test_inputs_fit_in_their_datatype_or_in_the_engines(half, brain):
    inputs = fit(request_for_model(half=half, brain=brain), MODEL)
    assert list(inputs) == ["x", "half", "brain"]
    for array in inputs.values():
        same(array, np.array([1, 2], np.float32))


@pytest.mark.parametrize(
    ("changes", "found", "expected"),
    [
        ({"x": "FP16"}, "Input 'x' is sent as FP16", "FP32"),
        ({"x": "BF16"}, "Input 'x' is sent as BF16", "FP32"),
        ({"x": "FP64"}, "Input 'x' is sent as FP64", "FP32"),
        ({"x": "INT32"}, "Input 'x' is sent as INT32", "FP32"),
        ({"half": "BF16"}, "Input 'half' is sent as BF16", "FP32"),
        ({"brain": "FP16"}, "Input 'brain' is sent as FP16", "FP32"),
        ({"x": None}, "missing: x", "exactly x, half, brain"),
        ({"x": None, "X": "FP32"}, "missing: x; not known: 'X'", "exactly x, half, brain"),
        ({"z": "FP32"}, "not known: 'z'", "exactly x, half, brain"),
        ({f"z{n}": "FP32" for n in range(9)}, "'z3', 'z4', …", "exactly x, half, brain"),
    ],
)
def test_inputs_that_do_not_fit(changes, found, expected):
    with pytest.raises(InputError) as caught:
        fit(request_for_model(**changes), MODEL)
    assert re.search(found, caught.value.found), caught.value.found
    assert re.search(expected, caught.value.expected)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("dtype", "binding_dtype", "sent"),
    [("float16", "float16", "BF16"), ("float16", "float16", "FP32"), ("float64", "float16", "FP16")],
)
def test_other_floats_are_not_taken_for_inputs_that_are_not_float32(dtype, binding_dtype, sent):
    with pytest.raises(InputError, match=f"is sent as {sent}"):
        fit(decode(body(entry(datatype=sent)), None), interface([tensor("x", dtype, binding_dtype)]))


def test_an_unknown_output_is_refused_before_anything_runs():
    with pytest.raises(ProtocolError, match="The output 'z' is asked for"):
        fit(request_for_model(outputs=[{"name": "y"}, {"name": "z"}]), MODEL)


def test_inputs_come_in_the_model_s_order_and_are_not_copied():
    given = {"b": np.float32([1]), "a": np.float32([2])}
    asked = InferenceRequest("", given, dict.fromkeys(given, "FP32"), None, True, None)
    inputs = fit(asked, interface([tensor("a"), tensor("b")]))
    assert list(inputs) == ["a", "b"]
    assert all(inputs[name] is given[name] for name in given)


def test_a_model_of_no_inputs_takes_none():
    asked = InferenceRequest("", {}, {}, (), True, None)
    assert fit(asked, interface()) == {}
    with pytest.raises(InputError, match="not known: 'x'"):
        fit(request_for_model(half=None, brain=None), interface())


def test_made_up_names_in_a_message_are_harmless():
    with pytest.raises(InputError) as caught:
        fit(request_for_model(**{"\x1b[31m\n" + "a" * 1000: "FP32"}), MODEL)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400
