"""Manifests, records of plans and hosts, made by hand.

``MANIFEST`` has two plans of one model, measured and not measured, every optional part once there; ``record``,
``manifest`` and ``host`` make small ones.
"""

from __future__ import annotations

import hashlib

from mlflow_trt.plan.manifest import (
    Branch,
    Census,
    ConstantLeaf,
    File,
    Golden,
    Host,
    InputLeaf,
    Interface,
    LatencyPoint,
    LatencyRecord,
    Manifest,
    OutputParity,
    ParityPoint,
    ParityRecord,
    PlanRecord,
    Precision,
    Program,
    ShapeRange,
    SourceRecord,
    Tensor,
    TensorLeaf,
    Tolerance,
)


def file(path: str, content: bytes = b"") -> File:
    return File(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


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


H100 = Host(
    gpu="NVIDIA H100 80GB HBM3",
    capability="9.0",
    driver="580.95.05",
    cuda="13.0",
    os="linux",
    machine="x86_64",
    runtimes={"tensorrt_rtx": "1.6.1.120"},
    torch="2.14.1",
    torch_tensorrt="2.14.0",
)

INTERFACE = Interface(
    inputs=(
        Tensor(
            name="image",
            binding="image",
            dtype="float32",
            binding_dtype="float32",
            shape=("batch", 3, "height", 224),
        ),
        Tensor(name="mask", binding="mask", dtype="bool", binding_dtype="bool", shape=("batch",)),
    ),
    outputs=(
        Tensor(name="scores", binding="output0", dtype="float32", binding_dtype="float32", shape=("batch", 1000)),
        Tensor(name="found", binding="output1", dtype="int64", binding_dtype="int64", shape=("found", 4)),
    ),
    arguments=Branch(
        kind="tuple",
        items=(
            Branch(kind="tuple", items=(TensorLeaf(name="image"),)),
            Branch(kind="dict", keys=("mask",), items=(TensorLeaf(name="mask"),)),
        ),
    ),
    result=Branch(
        kind="dict",
        keys=("scores", "found", "mask", "version"),
        items=(
            TensorLeaf(name="scores"),
            TensorLeaf(name="found"),
            InputLeaf(name="mask"),
            ConstantLeaf(value=2),
        ),
    ),
)

PROFILES = (
    {
        "image": ShapeRange(min=(1, 3, 224, 224), opt=(1, 3, 224, 224), max=(1, 3, 448, 224)),
        "mask": ShapeRange(min=(1,), opt=(1,), max=(1,)),
    },
    {
        "image": ShapeRange(min=(2, 3, 224, 224), opt=(16, 3, 224, 224), max=(64, 3, 448, 224)),
        "mask": ShapeRange(min=(2,), opt=(16,), max=(64,)),
    },
)

MEASURED = PlanRecord(
    file=file("plans/tensorrt_rtx-1.6.1.120-sm80-sm86-sm89/model.plan", b"the engine, forty-six megabytes of it"),
    runtime="tensorrt_rtx",
    release="1.6.1.120",
    capabilities=("8.0", "8.6", "8.9"),
    profiles=PROFILES,
    precision=Precision(
        requested="fp16",
        census=Census(
            layers={"float16": 122, "float32": 4, "int64": 3},
            weight_bytes={"float16": 51_114_064, "float32": 4_000},
            tf32=False,
        ),
    ),
    settings={"attn_bias_is_causal": False, "optimization_level": 3},
    built_on=H100,
    build_seconds=11.2,
    converter="onnx",
    converter_reason="Torch-TensorRT has no converter for torch.ops.aten.gather.default",
    parity=ParityRecord(
        status="passed",
        tolerance=Tolerance(rel_l2=0.01, cosine=0.999, top1=0.99),
        points=tuple(
            ParityPoint(
                profile=0,
                point=point,
                outputs=(
                    OutputParity(
                        output="scores", max_abs=0.0123, rel_l2=0.0013, cosine=0.999998, top1=1.0, passed=True
                    ),
                    OutputParity(output="found", max_abs=0.0, rel_l2=0.0, cosine=1.0, passed=True),
                ),
            )
            for point in ("min", "opt", "max")
        ),
        host=H100,
    ),
    latency=LatencyRecord(
        status="measured",
        points=(
            LatencyPoint(profile=0, point="opt", batch=1, p50_ms=0.78, p99_ms=0.81, runs=200),
            LatencyPoint(profile=1, point="opt", batch=16, p50_ms=2.4, p99_ms=2.6, runs=200),
        ),
        host=H100,
    ),
    runtime_cache=file("plans/tensorrt_rtx-1.6.1.120-sm80-sm86-sm89/runtime-cache.bin", b"kernels"),
)

NOT_MEASURED = PlanRecord(
    file=file("plans/tensorrt-11.1.0.23-sm90/model.plan", b"another engine"),
    runtime="tensorrt",
    release="11.1.0.23",
    capabilities=("9.0",),
    profiles=PROFILES,
    precision=Precision(requested=None),
    parity=ParityRecord(status="not_measured", reason="no GPU was there"),
    latency=LatencyRecord(status="not_measured", reason="no GPU was there"),
)

MANIFEST = Manifest(
    interface=INTERFACE,
    plans=(MEASURED, NOT_MEASURED),
    program=Program(file=file("program/model.pt2", b"the program"), torch="2.14.1"),
    golden=Golden(
        inputs=file("golden/inputs.safetensors", b"inputs"), outputs=file("golden/outputs.safetensors", b"outputs")
    ),
    source=SourceRecord(
        uri="models:/resnet/3",
        flavor="pytorch",
        files=(file("data/model.pt2", b"what was converted"),),
        model_id="m-8a1f0c5be1b94a5f9ac53c9a5f1b8d2e",
    ),
)
