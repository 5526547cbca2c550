"""Which flavor is converted, and what to do about the others."""

from __future__ import annotations

import pytest

from mlflow_trt.errors import SettingError
from mlflow_trt.flavor.sources import flavors


@pytest.mark.parametrize("flavor", ["onnx", "pytorch"])
def test_these_are_converted(flavor):
    assert flavors.choose({"python_function": {}, flavor: {}}, "models:/m/1") == flavor


@pytest.mark.parametrize(
    ("found", "message", "remedy"),
    [
        (["sklearn", "python_function"], "models:/m/1 has the flavors python_function, sklearn.", "export it to ONNX"),
        (["python_function"], "has the flavors python_function.", "export it to ONNX"),
        (["transformers", "python_function"], "transformers", "mlflow.transformers.load_model"),
        (["sentence_transformers"], "sentence_transformers", "mlflow.sentence_transformers.load_model"),
        (["mlflow_trt", "python_function"], "mlflow_trt", "it is a TensorRT engine already"),
        ([], "models:/m/1 has no flavor.", "export it to ONNX"),
    ],
)
def test_others_are_refused_with_what_to_do(found, message, remedy):
    with pytest.raises(SettingError) as caught:
        flavors.choose(found, "models:/m/1")
    assert message in caught.value.found
    assert remedy in caught.value.remedy
    assert "pytorch or onnx" in caught.value.expected
