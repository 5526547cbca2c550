"""An engine of the stand-in's (see standin.py), and the plan that it is made of, which only looks like one."""

from __future__ import annotations

import hashlib

import numpy as np
from interfaces import branch, interface, leaf, tensor
from manifests import record
from standin import Binding, Engine

from mlflow_trt.plan.manifest import ConstantLeaf, File, InputLeaf

RANGE = ((1, 3), (4, 3), (32, 3))


def plan_bytes(size=1000, release=(1, 6, 1, 120)):
    head = bytearray(size)
    head[:4] = b"vtrt"
    head[16:24] = size.to_bytes(8, "little")
    head[24:28] = bytes(release)
    return bytes(head)


def write_plan(folder, content=None, **changes):
    content = plan_bytes() if content is None else content
    path = folder / "plans/p/model.plan"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    file = File(path="plans/p/model.plan", size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return record(file=file, **changes)


def affine(trt, **changes):
    """y = 2 x + 1, z = the sum of each row."""
    return Engine(
        trt,
        [Binding("x", "FLOAT", (-1, 3), True), Binding("output0", "FLOAT", (-1, 3), False),
         Binding("output1", "FLOAT", (-1,), False)],
        [{"x": RANGE}],
        lambda given: {"output0": given["x"] * 2 + 1, "output1": given["x"].sum(axis=1)},
        lambda shapes: {"output0": shapes["x"], "output1": shapes["x"][:1]},
        **changes,
    )  # fmt: skip


AFFINE = interface(
    [tensor("x", ("batch", 3))],
    [tensor("y", ("batch", 3), binding="output0"), tensor("z", ("batch",), binding="output1")],
    result=branch("dict", leaf("y"), leaf("z"), ConstantLeaf(value=7), InputLeaf(name="x"), keys=("y", "z", "k", "x")),
)


def rows(n, start=0.0):
    return (np.arange(n * 3, dtype=np.float32) + start).reshape(n, 3)
