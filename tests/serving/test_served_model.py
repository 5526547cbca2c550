"""What is known of a version that answers, on its way to another process."""

from __future__ import annotations

import dataclasses
import json
import marshal

import pytest
from interfaces import IMAGE_PROFILES, IMAGES, PAIR, PAIR_PROFILES

from mlflow_trt.serving.served_model import ServedVersion

VERSION = ServedVersion("models:/m/3", "3", "tensorrt_rtx-1.6.1.120", PAIR, PAIR_PROFILES, "flavors: {}")


@pytest.mark.parametrize(
    "version",
    [VERSION, ServedVersion("/folder", "0123456789ab", "reference", IMAGES, IMAGE_PROFILES)],
    ids=["a registered one", "a folder"],
)
def test_it_arrives_as_it_was(version):
    arrived = ServedVersion.from_plain(marshal.loads(marshal.dumps(version.to_plain())))
    assert arrived == version
    assert json.loads(json.dumps(version.to_plain())), "its values are plain"


@pytest.mark.parametrize("change", [{"uri": "models:/m/4"}, {"version": "4"}, {"profiles": ()}, {"mlmodel": None}])
def test_another_version_is_another_value(change):
    assert dataclasses.replace(VERSION, **change) != VERSION
