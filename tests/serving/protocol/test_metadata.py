"""What the protocol tells of a model."""

from __future__ import annotations

import json

from mlflow_trt.plan.manifest import ShapeRange
from mlflow_trt.serving.protocol.metadata import describe

from .bodies import interface, tensor


def test_metadata():
    image = tensor("image", "float32", "bfloat16", shape=("batch", 3, "height", 224))
    profile = {"image": ShapeRange(min=(1, 3, 8, 224), opt=(4, 3, 16, 224), max=(8, 3, 32, 224))}
    found = describe(
        interface([image], [tensor("scores", "float16", shape=("batch", 10)), tensor("loss", "float64", shape=())]),
        model="m",
        versions=["3"],
        platform="tensorrt_rtx",
        profiles=[profile],
    )
    assert json.loads(json.dumps(found)) == {
        "name": "m",
        "versions": ["3"],
        "platform": "tensorrt_rtx",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, -1, 224]}],
        "outputs": [
            {"name": "scores", "datatype": "FP16", "shape": [-1, 10]},
            {"name": "loss", "datatype": "FP64", "shape": []},
        ],
        "profiles": [{"image": {"min": [1, 3, 8, 224], "opt": [4, 3, 16, 224], "max": [8, 3, 32, 224]}}],
    }


def test_several_versions_and_no_profiles():
    found = describe(interface(), model="m", versions=("1", "2"), platform="reference", profiles=())
    assert found == {
        "name": "m",
        "versions": ["1", "2"],
        "platform": "reference",
        "inputs": [],
        "outputs": [],
        "profiles": [],
    }
