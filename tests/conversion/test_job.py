"""What is to be built reaches the building child as it was."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch", reason="the package of conversion imports it")

from mlflow_trt.conversion.job import BindingSpec, Job

X = BindingSpec("x", "float32", (((1, 3), (2, 3), (4, 3)), ((4, 3), (8, 3), (8, 3))))
N = BindingSpec("n", "int64", (((), (), ()),))
"""A scalar, in all profiles."""


@pytest.mark.parametrize(
    "job",
    [
        Job((X, N), ("y", "x.out"), {"optimization_level": 3, "disable_tf32": True}, ("8.6", "8.9"), ("y",)),
        Job((), ("y",), {}, None),
    ],
)
def test_a_job_survives_its_way_as_json(job):
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_it_has_as_many_profiles_as_the_input_that_has_most():
    assert Job((N, X), (), {}, None).profiles == 2
    assert Job((N,), (), {}, None).profiles == 1
    assert Job((), (), {}, None).profiles == 1
