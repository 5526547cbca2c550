"""``convert``: a model goes in, a plan comes out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from .. import plan as _plan
from ..errors import SettingError
from ..plan import degenerate
from ..plan.dtypes import DTYPE_OF
from ..plan.files import Plan
from ..plan.manifest import Host, Manifest, ParityRecord, Precision, Tolerance
from . import arguments as _arguments
from . import converters, cpu_only, dimensions, interface, progress, ranges
from . import golden as _golden
from . import settings as _settings
from .job import BindingSpec, Job
from .plan_record import check_precision, describe, tolerance_of, typed
from .precision import Prepared, prepare
from .program import export, flatten, placeholder_values, refuse_mutation
from .shapes import check_shapes
from .structure import computed_outputs, portable
from .subject import subject

_logger = logging.getLogger(__name__)


@typed
def convert(
    model: torch.nn.Module | ExportedProgram,
    inputs: Any = None,
    *,
    arg_inputs: Any = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    precision: str | None = None,
    enabled_precisions: Any = None,
    compute_capabilities: Any = None,
    output_names: Sequence[str] | None = None,
    golden_inputs: Sequence[Any] | None = None,
    tolerance: Tolerance | Mapping[str, float] | float | None = None,
    timeout: float | None = 3600.0,
    converter: str = "auto",
    **settings: Any,
) -> Plan:
    """Converts a PyTorch model that is in memory; what the arguments mean stands at :func:`mlflow_trt.convert`.

    Args:
        model: A module, which is exported in evaluation mode and left as it is, or an exported program.
        inputs: What the model takes by position, in its own nesting; None for a static exported program.
        arg_inputs: Another name for ``inputs``.
        kwarg_inputs: What the model takes by keyword.
        precision: ``"fp32"``, ``"tf32"``, ``"fp16"``, ``"bf16"``; None: the model's own dtypes.
        enabled_precisions: The same in Torch-TensorRT's words.
        compute_capabilities: What to build for; None: the current GPU, or without one all that the runtime supports.
        output_names: Names for the outputs that the engine computes.
        golden_inputs: Real inputs to compare the engine with PyTorch on.
        tolerance: How far the engine may be from PyTorch.
        timeout: Seconds that the building child may take; None: any time.
        converter: ``"auto"``, ``"torch_tensorrt"`` or ``"onnx"``.
        **settings: Torch-TensorRT's own, as of the installed release.

    Returns:
        The plan, with its manifest, the exported program, and what PyTorch answered at every profile point.

    Raises:
        SettingError: An argument or setting is unknown, contradictory, or needs something that is not here.
        UnsupportedOperatorError: The model has operators that the converter, or neither of them, takes.
        PrecisionError: The network does not have the precision that was asked for.
        ConversionError: The model can't be exported, does not hold for the shapes, or TensorRT refused it.
    """
    model = subject(model)
    if inputs is not None and arg_inputs is not None:
        raise SettingError("Both inputs and arg_inputs were given.", "one of them: they mean the same", "leave one out")
    precision = _settings.precision_of(precision, enabled_precisions)
    converter = _settings.converter_of(converter)
    _settings.check(settings, converter)
    gpu = torch.cuda.is_available()
    capabilities = None if gpu and compute_capabilities is None else cpu_only.capabilities(compute_capabilities)
    chosen = _settings.complete(settings, precision, gpu=capabilities is None, converter=converter)
    converters.check(converter, chosen)
    limits = tolerance_of(tolerance, precision)

    given = _arguments.parse(model, inputs if inputs is not None else arg_inputs, kwarg_inputs)
    module = None if isinstance(model, ExportedProgram) else model
    steps = progress.Steps()
    with steps.timed("export"):
        program = model if isinstance(model, ExportedProgram) else export(model, given)
    specs = flatten(program, given)
    check_shapes(program, specs, guards=module is None)
    symbols = dimensions.symbols(program, specs)
    refuse_mutation(program)
    outputs = computed_outputs(program, output_names)
    bindings = interface.bindings(specs, outputs)
    values = placeholder_values(program)
    fed = {name: interface.fed_dtype(spec, values[name].dtype) for name, spec in specs.items()}
    for name, spec in specs.items():
        if torch.float64 in (spec.dtype, values[name].dtype):
            _logger.warning(
                "The input %s is float64; TensorRT has none, so the engine takes and computes float32.", name
            )
    shapes = {name: symbols.shape(values[name]) for name in specs}
    with steps.timed("golden"):
        golden = _golden.compute(program, specs, outputs, golden_inputs, shapes=shapes, module=module)

    prepared = prepare(program, outputs, getattr(torch, DTYPE_OF[precision]) if precision else None, fed)
    _warn(program, prepared, golden, precision)
    if capabilities is not None:
        capabilities = cpu_only.fitting(capabilities, prepared.dtypes(), named=compute_capabilities is not None)
    job = Job(
        tuple(
            BindingSpec(name, interface.plain(fed[name]), tuple((r.min, r.opt, r.max) for r in spec.ranges))
            for name, spec in specs.items()
        ),
        bindings,
        chosen,
        capabilities,
        tuple(bindings[position] for position in prepared.uint8),
    )
    what = converters.Source(prepared, golden, tuple(output.name for output in outputs))
    with steps.timed("build"), progress.shown() as listener:
        conversion = converters.build(what, job, converter, timeout, listener)
    built, job = conversion.built, conversion.job
    if precision is not None:
        check_precision(precision, built.network, prepared.kept, chosen)
    described = interface.describe(program, specs, outputs, bindings, built.network.outputs, symbols)
    host = _host()
    record = describe(built, job, capabilities or ((host.capability,) if host.capability else None))
    record = record.model_copy(
        update={
            "profiles": interface.profiles(specs),
            "precision": Precision(requested=precision, census=built.network.census()),
            "converter": job.converter,
            "converter_reason": conversion.reason,
            "built_on": host,
            "parity": ParityRecord(
                status="not_measured", reason="measured when the plan is logged on a GPU", tolerance=limits
            ),
        }
    )
    manifest = Manifest(interface=described, plans=(record,))
    return Plan(built.serialized, manifest, golden, portable(program), seconds=steps.seconds)


def _warn(program: ExportedProgram, prepared: Prepared, golden: _plan.GoldenTensors, precision: str | None) -> None:
    """Says what will make a comparison with the engine fail or mean little; a GPU's check then tells."""
    for reason in degenerate.reasons(golden, precision):
        _logger.warning("%s An engine can hardly be judged by it: %s.", reason, degenerate.REMEDY)
    if precision == "fp16":
        for sentence in ranges.sentences(program, ranges.half_nodes(prepared.program), golden):
            _logger.warning("%s", sentence)


def _host() -> Host:
    from ..plan.host import probe

    return probe()
