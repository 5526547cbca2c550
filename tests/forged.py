"""Plans that were never built: bytes with a real header and no engine behind it, and a real description.

Converting takes seconds, and hardly anything reads a plan beyond its header and digest unless a GPU loads it. The
reference backend needs no engine, and runs the program for real.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from interfaces import interface, span, tensor
from manifests import MEASURED, file, record

from mlflow_trt.plan.files import GoldenTensors, Header, Plan, folder_name
from mlflow_trt.plan.manifest import File, Host, LatencyRecord, Manifest, ParityRecord, PlanRecord

RELEASE = "1.6.1.120"
HERE = f"tensorrt_rtx=={RELEASE},sm_89,os=linux"
FULL_RELEASE = "8.6.1.6"
_BITS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


def engine_bytes(
    content: str = "",
    *,
    runtime: str = "tensorrt_rtx",
    release: str = RELEASE,
    capabilities: tuple[str, ...] = ("8.6", "8.9"),
) -> bytes:
    """Bytes whose header says what it should, laid out as TensorRT 8.6.1.6 and TensorRT-RTX wrote theirs."""
    body = b"layers and weights " * 200 + content.encode()
    magic, inner = {"tensorrt_rtx": (b"vtrt", b"vtrt"), "tensorrt": (b"ftrt", b"ptrt")}[runtime]
    header = magic + bytes(4) + (2).to_bytes(8, "little") + (64 + len(body)).to_bytes(8, "little")
    header += bytes(int(n) for n in release.split(".")) + inner
    if runtime == "tensorrt_rtx":
        header += sum(1 << _BITS.index(c) for c in capabilities).to_bytes(8, "little")
    return header.ljust(64, b"\0") + body


def full(release: str = FULL_RELEASE) -> bytes:
    """Bytes of a plan of full TensorRT."""
    return engine_bytes(runtime="tensorrt", release=release)


def record_of(described: File, header: Header | None = None) -> PlanRecord:
    """A measured plan's record; without a header it is of full TensorRT 8.6.1.6."""
    runtime, release = (header.runtime, header.release) if header else ("tensorrt", FULL_RELEASE)
    return MEASURED.model_copy(update={"file": described, "runtime": runtime, "release": release})


def with_file(made: PlanRecord, serialized: bytes) -> PlanRecord:
    """The record with the file of such bytes, where a plan's folder has it."""
    return made.model_copy(update={"file": file(f"plans/{folder_name(made)}/model.plan", serialized)})


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
    serialized = engine_bytes(content, release=release, capabilities=capabilities)
    made = record(
        release=release,
        capabilities=capabilities,
        profiles=({input_name: span(*((n, features) for n in batch))},),
        built_on=Host(os="linux", machine="x86_64", torch="2.14.1"),
        parity=parity or ParityRecord(status="not_measured", reason="no GPU was there"),
        latency=LatencyRecord(status="not_measured", reason="no GPU was there"),
    )
    described = Manifest(
        interface=interface([tensor(input_name, ("batch", features))], [tensor("scores", ("batch", 3))]),
        plans=(with_file(made, serialized),),
    )
    tensors = None
    if golden:
        x = np.linspace(-1, 1, batch[1] * features, dtype=np.float32).reshape(batch[1], features)
        tensors = GoldenTensors({f"0.opt/{input_name}": x}, {"0.opt/scores": np.zeros((batch[1], 3), np.float32)})
    program = export(module, batch, features) if module is not None else None
    return Plan(serialized, described, tensors, program)


def export(module, batch, features):
    import torch

    size = torch.export.Dim("batch", min=batch[0], max=batch[2])
    example = torch.zeros(batch[1], features)
    return torch.export.export(module.eval(), (example,), dynamic_shapes=({0: size},))


def described_plan(model: Any, inputs: Any, kwargs: Any = None, *, golden_inputs: Any = None) -> Plan:
    """A plan of ``model`` for the reference backend, through every step of a conversion but the build.

    Interface, golden answers and program are real. Inputs are as ``mlflow_trt.convert`` takes them.
    """
    from mlflow_trt.conversion import dimensions, golden, interface
    from mlflow_trt.conversion.arguments import parse
    from mlflow_trt.conversion.program import export, flatten, placeholder_values
    from mlflow_trt.conversion.shapes import check_shapes
    from mlflow_trt.conversion.structure import computed_outputs

    given = parse(model, inputs, kwargs)
    program = export(model, given)
    specs = flatten(program, given)
    check_shapes(program, specs)
    symbols = dimensions.symbols(program, specs)
    outputs = computed_outputs(program, None)
    values = placeholder_values(program)
    shapes = {name: symbols.shape(values[name]) for name in specs}
    answers = golden.compute(program, specs, outputs, golden_inputs, shapes=shapes)
    described = interface.describe(program, specs, outputs, interface.bindings(specs, outputs), (), symbols)
    made = plan("described", golden=False)
    of_the_plan = made.record.model_copy(update={"profiles": interface.profiles(specs)})
    manifest = made.manifest.model_copy(update={"interface": described, "plans": (of_the_plan,)})
    return dataclasses.replace(made, manifest=manifest, golden=answers, program=program)


def flip_one_byte(path: Path, at: int = 100) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))
