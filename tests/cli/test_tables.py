"""What a manifest, a compatibility report and a benchmark look like on a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from manifests import MANIFEST, MEASURED
from rich.console import Console

from mlflow_trt.cli import tables
from mlflow_trt.plan.compatibility import check_all
from mlflow_trt.plan.host import parse_host
from mlflow_trt.plan.manifest import (
    Census,
    LatencyPoint,
    LatencyRecord,
    OutputParity,
    ParityPoint,
    ParityRecord,
    ShapeRange,
    Tolerance,
)
from mlflow_trt.plan.parity import NOT_FINITE

from .commands import ELSEWHERE, HERE, run


def test_inspect_shows_inputs_outputs_plans_measurements_and_files(folder):
    result = run("inspect", folder)

    assert result.exit_code == 0
    for text in (
        "batch, 3, height, 224",
        "1, 3, 224:224:448, 224",
        "2:16:64, 3, 224:224:448, 224",
        "found, 4",
        "Plan 1 of 2  tensorrt_rtx-1.6.1.120-sm80-sm86-sm89",
        "fp16; layers: 122 float16, 4 float32, 3 int64; weights: 51.1 MB float16, 4 kB float32; TF32 off",
        "onnx; Torch-TensorRT has no converter for torch.ops.aten.gather.default",
        "in 11.2 s on NVIDIA H100 80GB HBM3 (9.0), driver 580.95.05, torch 2.14.1",
        "passed; at worst rel L2 0.0013 (allowed 0.01), cosine 0.999998, top-1 100.0%",
        "0.78 ms at batch 1, 2.40 ms at batch 16",
        "Plan 2 of 2  tensorrt-11.1.0.23-sm90",
        "not measured: no GPU was there",
        "Source  models:/resnet/3",
        "m-8a1f0c5be1b94a5f9ac53c9a5f1b8d2e",
        f"data/model.pt2  18 bytes, sha256 {MANIFEST.source.files[0].sha256[:12]}",
        "golden/inputs.safetensors",
        MEASURED.file.sha256[:12],
    ):
        assert text in result.stdout


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("arguments", [("inspect",), ("check", "--host", HERE, "--host", ELSEWHERE)])
def test_no_line_is_longer_than_the_terminal(folder, columns, arguments):
    lines = run(*arguments, folder, columns=columns).stdout.splitlines()

    assert len(lines) > 10
    assert max(len(line) for line in lines) <= columns


def test_an_unknown_interface_is_said_to_be_unknown(folder):
    record = MEASURED.model_copy(update={"profiles": None, "built_on": None, "capabilities": None})
    made = MANIFEST.model_copy(update={"interface": None, "plans": (record,)})
    Path(folder, "manifest.json").write_text(made.to_json())

    text = run("inspect", folder).stdout

    assert "Inputs and outputs are not known" in text
    assert "compute capability not known" in text
    assert "by another program" in text


def shown(part, width=120):
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    console.print(part)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1234, "1.23 kB"), (999_499, "999 kB")),
        *((999_500, "1 MB"), (48_237_000, "48.2 MB"), (999_600_000, "1 GB"), (2_500_000_000_000, "2,500 GB")),
    ],
)
def test_bytes_for_readers(count, text):
    assert tables.size(count) == text


@pytest.mark.parametrize(
    ("low", "opt", "high", "text"),
    [
        ((1, 3), (8, 3), (32, 3), "1:8:32, 3"),
        ((2, 3), (2, 3), (2, 3), "2, 3"),
        ((1,), (4,), (4,), "1:4:4"),
        ((), (), (), ""),
    ],
)
def test_a_shape_as_the_command_line_takes_it(low, opt, high, text):
    assert tables.range_text(ShapeRange(min=low, opt=opt, max=high)) == text


def test_profiles_that_agree_on_an_input_are_one_line():
    first = {"x": ShapeRange(min=(1,), opt=(2,), max=(4,)), "y": ShapeRange(min=(3,), opt=(3,), max=(3,))}
    second = {**first, "x": ShapeRange(min=(4,), opt=(8,), max=(8,))}
    assert tables._profile_lines((first, second), "x") == ["1:2:4", "4:8:8"]
    assert tables._profile_lines((first, second), "y") == ["3"]
    assert tables._profile_lines((first, {}), "y") == ["3", "?"]


def parity(status="failed", **figures):
    fields = {"output": "y", "max_abs": 1.0, "rel_l2": 0.01234, "cosine": 0.5, "passed": False, **figures}
    point = ParityPoint(profile=0, point="opt", outputs=(OutputParity(**fields),))
    return ParityRecord(status=status, points=(point,), tolerance=Tolerance(rel_l2=0.005, cosine=0.9))


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (parity(), "failed; at worst rel L2 0.012 (allowed 0.005), cosine 0.500000"),
        (parity(rel_l2=NOT_FINITE), "failed; at worst rel L2 not finite (allowed 0.005), cosine 0.500000"),
        (parity(top1=0.987), "failed; at worst rel L2 0.012 (allowed 0.005), cosine 0.500000, top-1 98.7%"),
        (parity().model_copy(update={"tolerance": None}), "failed; at worst rel L2 0.012, cosine 0.500000"),
        (ParityRecord(status="not_measured", reason="no GPU"), "not measured: no GPU"),
        (ParityRecord(status="not_measured"), "not measured"),
    ],
)
def test_parity_in_one_line(record, text):
    assert tables._parity_line(record).plain == text


def point(name, p50, batch=None):
    return LatencyPoint(profile=0, point=name, batch=batch, p50_ms=p50, p99_ms=2 * p50, runs=10)


@pytest.mark.parametrize(
    ("points", "text"),
    [
        ((point("min", 1.0, 1), point("opt", 2.0, 8)), "measured: 2.00 ms at batch 8"),
        ((point("min", 1.0), point("max", 3.0)), "measured: 1.00 ms, 3.00 ms"),  # no opt: all of them
    ],
)
def test_latency_in_one_line_is_that_of_opt(points, text):
    assert tables._latency_line(LatencyRecord(status="measured", points=points)).plain == text


def test_latency_as_a_table_has_rates_by_batch():
    record = LatencyRecord(status="measured", points=(point("opt", 2.0, 8), point("max", 0.5), point("min", 0.0, 1)))
    rows = [line.split() for line in shown(tables.of_latency(record)).splitlines()]
    assert ["0", "opt", "8", "2.000", "4.000", "4,000", "10"] in [[w for w in row if w not in "│┃"] for row in rows]
    text = shown(tables.of_latency(record))
    assert "2,000" in text  # one call at a time, where nobody knows the batch
    assert "inf" not in text


def test_what_was_not_measured_says_why():
    assert "not measured (no reason on record)" in shown(tables.of_latency(LatencyRecord(status="not_measured")))


def test_a_precision_lists_what_there_is_most_of_first():
    census = Census(layers={"int64": 1, "float16": 20}, weight_bytes={"int32": 8, "float16": 303_000}, tf32=False)
    precision = MEASURED.precision.model_copy(update={"requested": None, "census": census})
    record = MEASURED.model_copy(update={"precision": precision})
    text = "the model's own; layers: 20 float16, 1 int64; weights: 303 kB float16, 8 bytes int32; TF32 off"
    assert tables._precision(record) == text
    empty = precision.model_copy(update={"census": Census(layers={}, weight_bytes={}, tf32=True)})
    assert tables._precision(record.model_copy(update={"precision": empty})) == "the model's own; TF32 allowed"
    unknown = precision.model_copy(update={"census": None})
    assert "not known" in tables._precision(record.model_copy(update={"precision": unknown}))


def test_targets_name_what_a_plan_can_do_beside():
    record = MEASURED.model_copy(update={"capabilities": ("8.0",), "hardware_compatible": True, "refittable": True})
    assert tables._targets(record) == "compute capability 8.0; hardware-compatible: also newer; refittable"


def test_a_plan_that_would_load_too_is_told_from_the_one_that_is_taken():
    twice = MANIFEST.model_copy(update={"plans": (MEASURED, MEASURED.model_copy())})
    text = shown(tables.of_report(check_all(twice, parse_host(HERE))))
    assert "loads           tensorrt_rtx" in text
    assert "would load too  tensorrt_rtx" in text
