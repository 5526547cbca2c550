"""The public ``convert``: a model in memory, or one that MLflow holds, becomes a plan."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from ..errors import SettingError
from ..plan.files import Plan
from ..plan.manifest import SourceRecord, Tolerance
from .sources import flavors, graphs, logged_inputs, onnx_model, stored, torch_model
from .sources.stored import StoredSource

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto
    from torch.export import ExportedProgram

ConvertibleModel = Union["torch.nn.Module", "ExportedProgram", "ModelProto", str, Path, bytes]

_logger = logging.getLogger(__name__)

_INPUTS = ("inputs", "arg_inputs", "kwarg_inputs")

TIMEOUT = 3600.0
"""Seconds."""


def convert(
    model: ConvertibleModel,
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
    timeout: float | None = TIMEOUT,
    converter: str = "auto",
    dims: Mapping[str, Any] | None = None,
    allow_pickle: bool = False,
    **settings: Any,
) -> Plan:
    """Converts a model to a TensorRT engine, described and ready to be logged.

    On a machine with a GPU the engine is built in this process for that GPU. Without one, or where compute
    capabilities are named, TensorRT-RTX builds it in a child process for these.

    Args:
        model: A module, which is exported in evaluation mode and left as it is; an exported program; a graph in ONNX:
            its file (external data lies beside it), its bytes or an ``onnx.ModelProto``, for which torch need not be
            installed; or the URI of a model of MLflow's flavor ``pytorch`` or ``onnx``: ``models:/name/3``,
            ``models:/name@alias``, ``models:/m-…``, ``runs:/…/name``, a local folder. The version that it names then is
            recorded in the manifest. It is downloaded to a temporary folder.
        inputs: What the model takes by position, in its own nesting: :class:`mlflow_trt.Input`,
            ``torch_tensorrt.Input``, example tensors (their shape is fixed, and their values become golden inputs),
            and lists, tuples or dicts of these. An input with a name goes to that parameter. Numbers, strings and
            None are baked into the engine: they are the same at every call. None for a static exported program, or a
            URI whose model has a signature without dynamic dimensions. The inputs of a graph in ONNX may also be a dict
            by name; those whose dynamic dimensions ``dims`` names, and static ones, need not be given.
        arg_inputs: Another name for ``inputs``, as Torch-TensorRT has it.
        kwarg_inputs: What the model takes by keyword.
        precision: ``"fp32"`` (no TF32), ``"tf32"``, ``"fp16"`` or ``"bf16"``: what convolutions and matrix products
            compute in. Where the model itself casts to float32, that stays. None: the model's own dtypes, with
            TensorRT's TF32 default. Inputs and outputs stay float32 in any case.
        enabled_precisions: The same as Torch-TensorRT's documentation writes it: ``{torch.float16}``.
        compute_capabilities: TensorRT-RTX: what to build for: ``["8.6", "sm89"]``. None: the current GPU; without a
            GPU, all that TensorRT-RTX supports.
        output_names: Names for the outputs that the engine computes. Default: the keys of the model's own structure,
            or ``output0``, …; for a graph in ONNX, its own.
        golden_inputs: Real inputs to compare the engine with the model on: a list of dicts by input name, or of
            argument tuples. The profile points take their values from the first. Default: the input example that a
            PyTorch model was logged with, where it fits the inputs.
        tolerance: How far the engine may be from the model; a number is the relative L2 error. Default: by precision.
        timeout: Seconds that the building child may take; None: any time.
        converter: ``"torch_tensorrt"``; ``"onnx"``: ``torch.onnx.export`` and TensorRT's own parser; ``"auto"``: the
            first and, where that can't convert the whole model, the second.
        dims: For a graph in ONNX: by the name of a dynamic dimension a size, or (min, opt, max):
            ``dims={"batch": (1, 8, 32)}``.
        allow_pickle: Whether a model that was logged as pickled Python code, which can do anything, may be loaded.
        **settings: Torch-TensorRT's own, as of the installed release: ``optimization_level``, ``version_compatible``,
            ``immutable_weights``, … Different from upstream's defaults are ``attn_bias_is_causal=False``,
            ``truncate_double=True`` and ``require_full_compilation=True``.

    Returns:
        The plan, with its manifest, the exported program or the graph, and what PyTorch or ONNX Runtime answered at
        every profile point.

    Raises:
        SettingError: An argument or setting is unknown, contradictory, or needs something that is not here; or a
            stored model is of another flavor, or pickled.
        StoreError: A stored model, or the registry, can't be read.
        UnsupportedOperatorError: The model has operators that the converter, or neither of them, takes.
        PrecisionError: The network does not have the precision that was asked for.
        ConversionError: The model can't be loaded or exported, does not hold for the shapes, or TensorRT refused it.
    """
    given: dict[str, Any] = {
        "inputs": inputs,
        "arg_inputs": arg_inputs,
        "kwarg_inputs": kwarg_inputs,
        "precision": precision,
        "enabled_precisions": enabled_precisions,
        "compute_capabilities": compute_capabilities,
        "output_names": output_names,
        "golden_inputs": golden_inputs,
        "tolerance": tolerance,
        "timeout": timeout,
        "converter": converter,
        "dims": dims,
        **settings,
    }
    if graphs.is_graph(model):
        return _of_graph(model, given)
    if isinstance(model, (str, Path)):
        with stored.opened(model) as source:
            if source.flavor == flavors.ONNX:
                plan, record = _of_stored_graph(source, given)
            else:
                plan, record = _of_pytorch(source, given, allow_pickle)
        return replace(plan, manifest=plan.manifest.model_copy(update={"source": record}))
    return _of_torch(model, given)


def _of_pytorch(source: StoredSource, given: Mapping[str, Any], allow_pickle: bool) -> tuple[Plan, SourceRecord]:
    from .. import conversion

    _ = conversion.convert  # says what to install where torch is missing
    with torch_model.loaded(source, allow_pickle) as model:
        completed = dict(given)
        if all(given[name] is None for name in _INPUTS):
            logged = torch_model.logged_shapes(model, source)
            completed["inputs"] = None if logged is None else logged_inputs.static(logged, source.uri)
        if given["golden_inputs"] is None and given["kwarg_inputs"] is None:
            said = completed["inputs"] if completed["inputs"] is not None else given["arg_inputs"]
            completed["golden_inputs"] = logged_inputs.golden(torch_model.example(model, source), said)
            if completed["golden_inputs"] is not None:
                _logger.info("The input example that %s was logged with is a golden input.", source.uri)
        return _of_torch(model, completed), source.record([torch_model.file_of(source)])


def _of_stored_graph(source: StoredSource, given: Mapping[str, Any]) -> tuple[Plan, SourceRecord]:
    files = onnx_model.files_of(source)
    return _of_graph(files[0], given), source.record(files)


def _of_graph(graph: Any, given: Mapping[str, Any]) -> Plan:
    from ..conversion.from_onnx.convert import convert as convert_graph

    arguments = dict(given)
    converter, inputs, others = (arguments.pop(name) for name in ("converter", "inputs", "arg_inputs"))
    if converter not in ("auto", "onnx"):
        raise SettingError(
            f"converter={converter!r} was given, and the model is a graph in ONNX.",
            "'auto' or 'onnx': TensorRT's own parser",
            "leave it out",
        )
    if inputs is not None and others is not None:
        raise SettingError("Both inputs and arg_inputs were given.", "one of them: they mean the same", "leave one out")
    return convert_graph(graph, inputs if inputs is not None else others, **arguments)


def _of_torch(model: Any, given: Mapping[str, Any]) -> Plan:
    from ..conversion import convert as convert_model  # says what to install where torch is missing

    arguments = dict(given)
    if arguments.pop("dims") is not None:
        raise SettingError(
            "dims was given, and the model is no graph in ONNX.",
            "ranges with the inputs: the dimensions of a module have no names of their own",
            "write inputs=[Input((('batch', 1, 8, 32), 3, 224, 224))]",
        )
    return convert_model(model, **arguments)
