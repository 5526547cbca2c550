"""Models for the tests of promotion: a real exported program behind a plan that only looks like one.

Converting takes seconds, and no gate reads a plan beyond its header and digest unless a GPU loads it. The reference
backend runs the program for real.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from mlflow_trt.plan.files import GoldenTensors, Plan
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

RELEASE = "1.6.1.120"
HERE = f"tensorrt_rtx=={RELEASE},sm_89,os=linux"
_BITS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


def engine_bytes(content: bytes = b"", release: str = RELEASE, capabilities: tuple[str, ...] = ("8.6", "8.9")) -> bytes:
    """Bytes whose header says what it should."""
    body = (b"layers and weights " * 40) + content
    mask = sum(1 << _BITS.index(c) for c in capabilities)
    header = bytearray(64)
    header[:4] = b"vtrt"
    header[16:24] = (64 + len(body)).to_bytes(8, "little")
    header[24:28] = bytes(int(n) for n in release.split("."))
    header[32:40] = mask.to_bytes(8, "little")
    return bytes(header) + body


def plan(
    content: str = "",
    *,
    module=None,
    features: int = 4,
    batch: tuple[int, int, int] = (1, 2, 8),
    release: str = RELEASE,
    capabilities: tuple[str, ...] = ("8.6", "8.9"),
    parity: ParityRecord | None = None,
    input_name: str = "x",
    golden: bool = True,
) -> Plan:
    """A plan of ``module``: (batch, features) → (batch, classes)."""
    serialized = engine_bytes(content.encode(), release, capabilities)
    profile = {input_name: ShapeRange(**{k: (n, features) for k, n in zip(("min", "opt", "max"), batch)})}
    interface = Interface(
        inputs=(tensor(input_name, "float32", ("batch", features)),),
        outputs=(tensor("scores", "float32", ("batch", 3)),),
        arguments=Branch(
            kind="tuple",
            items=(
                Branch(kind="tuple", items=(TensorLeaf(name=input_name),)),
                Branch(kind="dict", keys=(), items=()),
            ),
        ),
        result=TensorLeaf(name="scores"),
    )
    names = "-".join("sm" + c.replace(".", "") for c in capabilities)
    path = f"plans/tensorrt_rtx-{release}-{names}/model.plan"
    record = PlanRecord(
        file=File(path=path, size=len(serialized), sha256=hashlib.sha256(serialized).hexdigest()),
        runtime="tensorrt_rtx",
        release=release,
        capabilities=capabilities,
        profiles=(profile,),
        precision=Precision(requested="fp32"),
        built_on=Host(os="linux", machine="x86_64", torch="2.14.1"),
        parity=parity or ParityRecord(status="not_measured", reason="no GPU was there"),
        latency=LatencyRecord(status="not_measured", reason="no GPU was there"),
    )
    tensors = None
    if golden:
        x = np.linspace(-1, 1, batch[1] * features, dtype=np.float32).reshape(batch[1], features)
        tensors = GoldenTensors({f"0.opt/{input_name}": x}, {"0.opt/scores": np.zeros((batch[1], 3), np.float32)})
    program = export(module, batch, features) if module is not None else None
    return Plan(serialized, Manifest(interface=interface, plans=(record,)), tensors, program)


def tensor(name: str, dtype: str, shape) -> Tensor:
    return Tensor(name=name, binding=name, dtype=dtype, binding_dtype=dtype, shape=shape)


def export(module, batch, features):
    import torch

    size = torch.export.Dim("batch", min=batch[0], max=batch[2])
    example = torch.zeros(batch[1], features)
    return torch.export.export(module.eval(), (example,), dynamic_shapes=({0: size},))


def flip_one_byte(path: Path, at: int = 100) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))
