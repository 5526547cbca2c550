"""Interfaces and manifests made by hand, so that the runtime is tested without building anything."""

from __future__ import annotations

import numpy as np

from mlflow_trt.plan.manifest import (
    Branch,
    File,
    Host,
    Interface,
    LatencyRecord,
    Manifest,
    ParityRecord,
    PlanRecord,
    Precision,
    ShapeRange,
    Tensor,
    TensorLeaf,
)


def tensor(name, shape, dtype="float32", binding_dtype=None, binding=None):
    return Tensor(
        name=name, binding=binding or name, dtype=dtype, binding_dtype=binding_dtype or dtype, shape=tuple(shape)
    )


def leaf(name):
    return TensorLeaf(name=name)


def branch(kind, *items, keys=None, type_name=None):
    return Branch(kind=kind, items=items, keys=keys, type_name=type_name)


def interface(inputs, outputs, *, arguments=None, result=None):
    positional = branch("tuple", *[leaf(t.name) for t in inputs])
    plain = [leaf(t.name) for t in outputs]
    return Interface(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        arguments=arguments or branch("tuple", positional, branch("dict", keys=())),
        result=result or (plain[0] if len(plain) == 1 else branch("tuple", *plain)),
    )


def span(low, opt, high):
    return ShapeRange(min=low, opt=opt, max=high)


def record(**changes):
    fields = {
        "file": File(path="plans/p/model.plan", size=1, sha256="0" * 64),
        "runtime": "tensorrt_rtx",
        "release": "1.6.1.120",
        "capabilities": ("8.6", "8.9"),
        "profiles": None,
        "precision": Precision(requested="fp32"),
        "parity": ParityRecord(status="not_measured"),
        "latency": LatencyRecord(status="not_measured"),
        **changes,
    }
    return PlanRecord(**fields)


def manifest(*records, **changes):
    return Manifest(**{"interface": None, "plans": records or (record(),), **changes})


def host(**changes):
    fields = {
        "gpu": "NVIDIA L4",
        "capability": "8.9",
        "driver": "580.95.05",
        "cuda": "13.0",
        "os": "linux",
        "machine": "x86_64",
        "runtimes": {"tensorrt_rtx": "1.6.1.120"},
        **changes,
    }
    return Host(**fields)


IMAGES = interface([tensor("x", ("batch", 3, 4))], [tensor("y", ("batch", 3))])
IMAGE_PROFILES = ({"x": span((1, 3, 4), (4, 3, 4), (8, 3, 4))},)

PAIR = interface(
    [tensor("ids", ("batch", "length"), "int64"), tensor("mask", ("batch", "length"), "bool")],
    [tensor("out", ("batch", 2))],
)
PAIR_PROFILES = (
    {"ids": span((1, 1), (1, 16), (2, 32)), "mask": span((1, 1), (1, 16), (2, 32))},
    {"ids": span((2, 8), (16, 64), (32, 128)), "mask": span((2, 8), (16, 64), (32, 128))},
)


def pair(batch, length):
    return {"ids": np.ones((batch, length), np.int64), "mask": np.ones((batch, length), bool)}
