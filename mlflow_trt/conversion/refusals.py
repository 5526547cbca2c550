"""What a build that failed tells its user."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import ConversionError, ConverterError, SettingError, UnsupportedOperatorError

_TOO_NEW = "CUDA error 222"
"""CUDA_ERROR_UNSUPPORTED_PTX_VERSION, in the list of errors of CUDA's driver API."""

_NO_MEMORY = re.compile(r"out ?of ?memory|bad_alloc|insufficient memory|not enough (\w+ )?memory", re.IGNORECASE)


def unsupported(
    operators: Sequence[str], places: Mapping[str, str], static_only: Sequence[str]
) -> UnsupportedOperatorError:
    """The error for operators without a converter.

    Args:
        operators: Their names.
        places: Where in the model the first of each is, to follow its name.
        static_only: Those whose converter is only not declared for dynamic sizes.
    """
    count = f"{len(operators)} operator" + "s" * (len(operators) != 1)
    listed = "\n".join(f"  {operator}{places.get(operator, '')}" for operator in operators)
    hint = (
        f"; {', '.join(static_only)}: has a converter that is not declared for dynamic sizes, so give the "
        "inputs fixed sizes, or try assume_dynamic_shape_support=True and look at the parity check"
        if static_only
        else ""
    )
    if any("scaled_dot_product" in operator for operator in operators):
        hint += "; try decompose_attention=True, which takes attention apart"
    return UnsupportedOperatorError(
        f"The model has {count} that Torch-TensorRT cannot convert:\n{listed}",
        "operators with a converter: an engine is the whole model (require_full_compilation), so none can be left to "
        "PyTorch",
        "replace these operators, register a converter "
        "(torch_tensorrt.dynamo.conversion.dynamo_tensorrt_converter), or move them out of the model, before or after "
        f"the engine{hint}",
        tuple(operators),
    )


def not_built(cause: BaseException, node: str | None, messages: Sequence[str]) -> ConversionError:
    """The error for a network that TensorRT refused.

    Args:
        cause: What was raised first.
        node: What was being converted.
        messages: TensorRT's own errors, in order.
    """
    if any(_TOO_NEW in message for message in messages):
        return ConversionError(
            f"This GPU's driver does not take the code that this release of TensorRT compiles ({_TOO_NEW}).",
            "a driver of the CUDA release that TensorRT was made with, or of a newer one",
            "update the driver, or install an older release of TensorRT; an engine whose weights stay as they are "
            "(immutable_weights=True) can be built for capabilities that are named (compute_capabilities=), which "
            "needs no driver",
        )
    where = f" at {node}" if node else ""
    said = "".join(f"\n  TensorRT: {message}" for message in dict.fromkeys(messages[-6:]))
    if isinstance(cause, MemoryError) or any(_NO_MEMORY.search(text) for text in (str(cause), *messages)):
        return ConversionError(
            f"There was not enough memory to build the engine{where}: {type(cause).__name__}: {str(cause)[:600]}{said}",
            "memory for the model's weights, and for what TensorRT tries out",
            "give it more memory, or a smaller model or range of shapes",
        )
    return ConverterError(
        f"TensorRT could not build the engine{where}: {type(cause).__name__}: {str(cause)[:600]}{said}",
        "a network that TensorRT accepts",
        "see the messages above; a smaller model, fewer dynamic dimensions, or another Torch-TensorRT release may tell "
        "more",
    )


def not_parsed(errors: Sequence[tuple[str, str, str, str]]) -> ConversionError:
    """The error for an ONNX graph that TensorRT's parser refused.

    Args:
        errors: Of each the operator, the node, the parser's code and its words.
    """
    listed = "\n".join(
        f"  {operator or 'the graph'}{f' at {node}' if node else ''}: {words.strip()[:300]}"
        for operator, node, _, words in errors[:20]
    )
    missing = [o for o, _, code, words in errors if o and (code.startswith("UNSUPPORTED") or "not support" in words)]
    operators = tuple(dict.fromkeys(f"onnx.{operator}" for operator in missing))
    if operators:
        count = f"{len(operators)} operator" + "s" * (len(operators) != 1)
        return UnsupportedOperatorError(
            f"The model's ONNX graph has {count} that TensorRT's parser does not take:\n{listed}",
            "operators that the parser takes, with the attributes that it takes",
            "replace these operators, or move them out of the model, before or after the engine",
            operators,
        )
    return ConverterError(
        f"TensorRT's parser refused the model's ONNX graph:\n{listed}",
        "a graph that TensorRT accepts",
        "see the messages above; fewer dynamic dimensions, or another release of TensorRT may tell more",
    )


def not_tried(first: ConversionError, obstacle: SettingError) -> ConversionError:
    """The error for a model that Torch-TensorRT can't convert, where ONNX could not be tried."""
    remedy = f"{first.remedy}; ONNX, which may take the model, was not tried: {obstacle.found} {obstacle.remedy}"
    if isinstance(first, UnsupportedOperatorError):
        return UnsupportedOperatorError(first.found, first.expected, remedy, first.operators)
    return ConverterError(first.found, first.expected, remedy)


def neither(first: ConversionError, second: ConversionError) -> ConversionError:
    """The error for a model that neither converter takes: what both said, and the operators of both."""
    found = f"Neither converter can build the model.\nTorch-TensorRT: {first.found}\nONNX: {second.found}"
    expected = f"{first.expected} (Torch-TensorRT); or {second.expected} (ONNX)"
    remedy = f"{first.remedy}\n  or, for ONNX: {second.remedy}"
    operators = [o for e in (first, second) if isinstance(e, UnsupportedOperatorError) for o in e.operators]
    if operators:
        return UnsupportedOperatorError(found, expected, remedy, tuple(dict.fromkeys(operators)))
    return ConverterError(found, expected, remedy)


def places(nodes: Iterable[Any]) -> dict[str, str]:
    """Where the first node of each operator comes from: the module's path and class, and the line of its code."""
    first: dict[str, str] = {}
    for node in nodes:
        operator = f"torch.ops.{node.target}"
        if node.op != "call_function" or operator in first:
            continue
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path, kind = (str(part) for part in stack[-1][:2]) if stack else ("", "")
        lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
        files = [line.split(", in ")[0] for line in lines if line.startswith("File ")]
        where = [f"at {path}" if path else "", f"({kind.rpartition('.')[2]})" if kind else "", *files[-1:]]
        first[operator] = "".join(f" {part}" for part in where if part)
    return first
