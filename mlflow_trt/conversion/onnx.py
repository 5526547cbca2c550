"""The other converter: ``torch.onnx.export`` of the prepared program, and TensorRT's own parser of ONNX.

What is given to the parser is a file with its weights beside it, as a graph of more than 2 GB has to be.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import string
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ..errors import ConversionError, ConverterError, SettingError, UnsupportedOperatorError
from .build_child import MODEL
from .job import Job
from .operators import operator_name
from .refusals import places
from .structure import output_node

OPSET = 20
"""torch's own default: the first with a GELU, which TensorRT then need not piece together."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")

_MISSING = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)', overload='([^']+)'\)>")


def missing() -> list[str]:
    """The packages that this converter needs and that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def check_installed() -> None:
    """Checks that this converter's packages are there.

    Raises:
        SettingError: They are not all.
    """
    if lacking := missing():
        raise SettingError(
            f"The converter onnx needs {', '.join(lacking)}, and this is not installed.",
            ", ".join(PACKAGES),
            f"pip install {' '.join(lacking)} (the extras convert-rtx and convert bring them), or "
            "converter='torch_tensorrt'",
        )


def write(program: ExportedProgram, job: Job, folder: Path) -> None:
    """Writes a program as an ONNX graph.

    Args:
        program: A prepared program: flat inputs, unique computed outputs.
        job: What its inputs and outputs are called.
        folder: Where :data:`MODEL` and its weights go.

    Raises:
        UnsupportedOperatorError: The program has operators that ONNX has not.
        ConverterError: The export failed.
        OSError: The folder can't be written.
    """
    exported = _exported(program)
    _spell_einsums(exported.model.graph)
    _name(exported.model, program, job)
    exported.save(folder / MODEL, external_data=True)


def _exported(program: ExportedProgram) -> Any:
    from onnxscript import optimizer

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            # Its optimizer would compute with weights (batch norm into convolutions), in half precision or beyond it.
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                optimize=False,
                custom_translation_table=_quantizers(program),
            )
            assert exported is not None
            optimizer.inline(exported.model)
            optimizer.fold_constants(exported.model, onnx_shape_inference=True, should_fold=_may_fold)
            optimizer.remove_unused_nodes(exported.model)
            return exported
    except (MemoryError, OSError):
        raise
    except Exception as error:
        raise _not_exported(error, program) from error
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _may_fold(node: Any) -> bool | None:
    """Weights stay quantized."""
    return False if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None


def _quantizers(program: ExportedProgram) -> dict[Any, Any]:
    """What modelopt's quantizers of a program become."""
    targets = {node.target for node in program.graph.nodes if operator_name(node) == "quantize_op"}
    return dict.fromkeys(targets, _quantized) if targets else {}


def _quantized(x: Any, amax: Any, num_bits: int, exponent_bits: int, unsigned: bool, narrow_range: bool) -> Any:
    """A tensor rounded to FP8, one scale for all of it, and what that stands for."""
    from onnx import TensorProto, helper
    from onnxscript import opset20 as op

    if (num_bits, exponent_bits) != (8, 4):
        raise NotImplementedError(
            f"a quantizer of {num_bits} bits, {exponent_bits} of them exponent: FP8 alone is taken"
        )
    most = op.Constant(value=helper.make_tensor("", TensorProto.FLOAT, (), [_FP8_MAX]))
    scale = op.CastLike(op.Div(op.Cast(op.Squeeze(amax), to=TensorProto.FLOAT), most), x)
    zero = op.Constant(value=helper.make_tensor("", TensorProto.FLOAT8E4M3FN, (), [0.0]))
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero), scale, zero)


_FP8_MAX = float(torch.finfo(torch.float8_e4m3fn).max)


def _not_exported(error: Exception, program: ExportedProgram) -> ConversionError:
    reasons = list(_causes(error))
    if lacking := next((match for reason in reasons if (match := _MISSING.search(str(reason)))), None):
        operator = f"torch.ops.{lacking[1]}.{lacking[2]}"
        # As the model has it, or what torch.onnx.export took it apart into: _linalg_svd of linalg_svd.
        place = next((p for o, p in places(program.graph.nodes).items() if _plain(o) == _plain(operator)), "")
        return UnsupportedOperatorError(
            f"The model has an operator that torch.onnx.export cannot convert:\n  {operator}{place}",
            "operators that ONNX has",
            "replace this operator, or move it out of the model, before or after the engine",
            (operator,),
        )
    cause = reasons[-1]
    return ConverterError(
        f"torch.onnx.export failed: {type(cause).__name__}: {str(cause).strip()[:600] or 'no reason given'}",
        "a program that it takes",
        "look at the error that this one was raised from: it names the place in the program",
    )


def _plain(operator: str) -> str:
    return "".join(operator.split(".")[3:4]).strip("_")


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _name(model: Any, program: ExportedProgram, job: Job) -> None:
    """Gives the graph's inputs and outputs the job's names, and each output a value of its own."""
    from onnxscript import ir

    graph = model.graph
    taken: set[int] = set()
    inputs = {id(value) for value in graph.inputs}
    results: list[Node] = list(output_node(program).args[0])  # type: ignore[arg-type]
    for place, (output, node) in enumerate(zip(list(graph.outputs), results)):
        value = node.meta.get("val")
        scalar = getattr(value, "ndim", 0) == 0 and output.shape is not None and len(output.shape) == 1
        # The exporter's optimizer hands an input or a weight through, and joins what is computed twice.
        if scalar or id(output) in inputs | taken or output.producer() is None:
            made = ir.Node("", "Squeeze" if scalar else "Identity", [output])
            graph.append(made)
            own = made.outputs[0]
            own.type, own.shape = output.type, ir.Shape(()) if scalar else output.shape
            graph.outputs[place] = output = own
        taken.add(id(output))
    wanted = dict(zip((*graph.inputs, *graph.outputs), (*(spec.name for spec in job.inputs), *job.outputs)))
    names = set(wanted.values())
    for value in _values(graph):
        if value not in wanted and value.name in names:
            value.name = f"{value.name}.inner"
    for value, name in wanted.items():
        value.name = name


def _spell_einsums(graph: Any) -> None:
    """Writes equations in small letters, which are all that TensorRT's parser knows."""
    from onnxscript import ir

    for node in graph.all_nodes():
        equation = node.attributes["equation"].value if node.op_type == "Einsum" else ""
        if "->" in equation:  # without, the letters' own order says how the answer is laid out
            letters = dict(zip(filter(str.isalpha, dict.fromkeys(equation)), string.ascii_lowercase))
            spelled = "".join(letters.get(c, c) for c in equation if c != " ")
            node.attributes["equation"] = ir.AttrString("equation", spelled)


def _values(graph: Any) -> Iterator[Any]:
    """Every value of a graph and of those within it."""
    yield from list(graph.initializers.values())
    for node in graph.all_nodes():
        yield from node.outputs
        for attribute in node.attributes.values():
            inner = attribute.value if attribute.type.name == "GRAPH" else None
            if inner is not None:
                yield from (*inner.inputs, *inner.initializers.values())
