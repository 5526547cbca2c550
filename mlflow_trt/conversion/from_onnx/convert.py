"""A graph in ONNX goes in, a plan comes out; torch is not asked."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import SettingError
from ...plan import degenerate
from ...plan.files import GoldenTensors, Plan
from ...plan.host import probe
from ...plan.manifest import Manifest, ParityRecord, Precision, Tolerance
from .. import cpu_only, onnx_parser, progress
from .. import settings as _settings
from ..build_child import MODEL
from ..job import BindingSpec, Job
from ..plan_record import check_precision, describe, tolerance_of, typed
from . import agreement, checks, golden, inputs, interface, maxima, quantization, values
from . import precision as _precision
from .model import FILE, OnnxModel, OnnxSource, fixed, loaded, read, write
from .plain import plain

_logger = logging.getLogger(__name__)

PACKAGES = ("onnx", "onnxruntime")


@typed
def convert(
    source: OnnxSource,
    given: Any = None,
    *,
    kwarg_inputs: Mapping[str, Any] | None = None,
    dims: Mapping[str, Any] | None = None,
    precision: str | None = None,
    enabled_precisions: Any = None,
    compute_capabilities: Any = None,
    output_names: Sequence[str] | None = None,
    golden_inputs: Sequence[Any] | None = None,
    tolerance: Tolerance | Mapping[str, float] | float | None = None,
    timeout: float | None = 3600.0,
    **settings: Any,
) -> Plan:
    """Converts a graph in ONNX to a TensorRT engine; see :func:`mlflow_trt.convert`.

    Args:
        source: A file (its external data lies beside it), its bytes, or a ``ModelProto``, which stays as it is.
        given: What is said of its inputs; see :func:`.inputs.describe`.
        kwarg_inputs: The same by name.
        dims: Ranges by the names of the graph's dynamic dimensions.
        precision: What convolutions and matrix products compute in; None: the graph's own dtypes.
        enabled_precisions: The same as Torch-TensorRT's documentation writes it.
        compute_capabilities: TensorRT-RTX: what to build for.
        output_names: Public names of the graph's outputs, in its order.
        golden_inputs: Real inputs to compare the engine on.
        tolerance: How far the engine may be from ONNX Runtime.
        timeout: Seconds that the building child may take.
        **settings: Those of TensorRT's builder (:data:`..settings.OF_THE_BUILDER`).

    Raises:
        SettingError: An argument is unknown, contradictory, or a package is missing.
        UnsupportedOperatorError: The graph has operators that TensorRT's parser does not take.
        PrecisionError: The network does not have the precision that was asked for.
        ConversionError: It is no valid graph, does not hold for the sizes, or TensorRT refused it.
    """
    _check_installed()
    precision = _settings.precision_of(precision, enabled_precisions)
    _settings.check(settings, "onnx")
    host = probe()
    gpu = host.capability is not None
    capabilities = None if gpu and compute_capabilities is None else cpu_only.capabilities(compute_capabilities)
    chosen = _settings.complete(settings, precision, gpu=capabilities is None, converter="onnx")
    limits = tolerance_of(tolerance, precision)

    steps = progress.Steps()
    with steps.timed("read"):
        model = read(source)
        fed = inputs.describe(model, given, kwarg_inputs, dims)
        model = plain(fixed(model, inputs.fixed_sizes(fed)))
    names = interface.output_names(model, output_names)
    with cpu_only.scratch() as folder:
        original, ready = folder / "original", folder / "ready"
        original.mkdir()
        ready.mkdir()
        with cpu_only.writing(folder), steps.timed("golden"):
            path = write(model, original)
            asked = golden.compute(path, fed, values.roles(model.proto), golden_inputs)
        _warn(asked, precision)
        with cpu_only.writing(folder):
            cast = _precision.cast(model, precision)
            write(maxima.written_out(cast.model), ready)
        if capabilities is not None:
            capabilities = cpu_only.fitting(capabilities, cast.dtypes, named=compute_capabilities is not None)
        job = Job(
            tuple(BindingSpec(i.name, i.dtype, tuple((r.min, r.opt, r.max) for r in i.ranges)) for i in fed),
            tuple(names), _settings.of_the_builder(chosen), capabilities, converter="onnx",
        )  # fmt: skip
        if onnx_parser.runtime(job) == "tensorrt_rtx":
            checks.check_kernels(model.proto)
            quantization.check_int8_convolutions(model)
        with steps.timed("build"), progress.shown() as listener:
            if capabilities is None:
                built = onnx_parser.build(ready / MODEL, job, listener)
            else:
                built = cpu_only.build(ready, job, timeout, listener)
        agreement.check(ready / FILE, asked, precision)
    if precision is not None:
        check_precision(precision, built.network, cast.kept, chosen)
    described = interface.describe(model, fed, asked, names, built.network.outputs)
    record = describe(built, job, capabilities or ((host.capability,) if host.capability else None)).model_copy(
        update={
            "profiles": inputs.profiles(fed),
            "precision": Precision(requested=precision, census=built.network.census()),
            "converter": "onnx",
            "built_on": host,
            "parity": ParityRecord(
                status="not_measured", reason="measured when the plan is logged on a GPU", tolerance=limits
            ),
        }
    )
    manifest = Manifest(interface=described, plans=(record,))
    # Weights within: the caller's files may be gone before the model is written.
    program = OnnxModel(loaded(model))
    return Plan(built.serialized, manifest, _public(asked, names), program, seconds=steps.seconds)


def _check_installed() -> None:
    if lacking := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise SettingError(
            f"{', '.join(lacking)} is not installed, and converting a graph in ONNX needs it.",
            ", ".join(PACKAGES),
            "pip install 'mlflow-trt[convert-onnx-rtx]'",
        )


def _warn(asked: GoldenTensors, precision: str | None) -> None:
    for reason in degenerate.reasons(asked, precision):
        _logger.warning("%s An engine can hardly be judged by it: %s.", reason, degenerate.REMEDY)


def _public(asked: GoldenTensors, names: Mapping[str, str]) -> GoldenTensors:
    """The answers by the outputs' public names."""
    renamed = {}
    for key, array in asked.outputs.items():
        prefix, name = key.split("/", 1)
        renamed[f"{prefix}/{names[name]}"] = array
    return GoldenTensors(asked.inputs, renamed)
