"""Versions whose plans have the header of the full TensorRT and nothing behind it.

The full TensorRT can't be installed beside TensorRT-RTX and was never run here: no test claims that such a plan runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import forged
import interfaces
import manifests
import numpy as np
from interfaces import branch, leaf, span

from mlflow_trt import plan as plans
from mlflow_trt.plan.files import GoldenTensors, Plan
from mlflow_trt.plan.manifest import (
    Host,
    Interface,
    LatencyRecord,
    Manifest,
    ParityRecord,
    PlanRecord,
    Precision,
    Profile,
    Tensor,
)

RELEASE = "10.15.1.29"
BATCH = ("batch", 4)
ONE_PROFILE: tuple[Profile, ...] = ({"x": span((1, 4), (2, 4), (8, 4))},)


def engine_bytes(content: str = "", release: str = RELEASE) -> bytes:
    return forged.engine_bytes(content, runtime="tensorrt", release=release)


def tensor(
    name: str, shape, dtype: str = "float32", *, binding: str | None = None, public: str | None = None
) -> Tensor:
    seen = public or ("float32" if dtype.startswith(("bfloat", "float8", "float4", "int4")) else dtype)
    return interfaces.tensor(name, shape, seen, dtype, binding)


def interface(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Interface:
    return interfaces.interface(inputs, outputs, result=branch("tuple", *(leaf(t.name) for t in outputs)))


CLASSIFIER = interface([tensor("x", BATCH, binding="input_0")], [tensor("scores", ("batch", 3), binding="output0")])


def record(
    content: str = "",
    *,
    runtime: str = "tensorrt",
    release: str = RELEASE,
    capabilities: tuple[str, ...] | None = ("9.0",),
    profiles: tuple[Profile, ...] | None = ONE_PROFILE,
    os: str | None = "linux",
    **more,
) -> PlanRecord:
    made = manifests.record(
        runtime=runtime,
        release=release,
        capabilities=capabilities,
        profiles=profiles,
        precision=Precision(requested="fp16"),
        built_on=Host(os=os),
        parity=ParityRecord(status="not_measured", reason="never run"),
        latency=LatencyRecord(status="not_measured", reason="never run"),
        **more,
    )
    return forged.with_file(made, engine_bytes(content, release))


def plan(
    content: str = "",
    *,
    interface: Interface | None = CLASSIFIER,
    golden: Mapping[str, np.ndarray] | None = None,
    **more,
) -> Plan:
    made = record(content, **more)
    tensors = None if golden is None else GoldenTensors(dict(golden), {k: np.zeros(1, np.float32) for k in golden})
    return Plan(engine_bytes(content, made.release), Manifest(interface=interface, plans=(made,)), tensors)


def rows(count: int, features: int = 4, start: int = 0) -> np.ndarray:
    return np.arange(start, start + count * features, dtype=np.float32).reshape(count, features)


GOLDEN = {"0.min/x": rows(1), "0.opt/x": rows(2, start=10), "0.max/x": rows(8, start=100)}


def save(folder: Path, *made: Plan) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    plans.write(made, folder)
    return folder
