"""What a build that failed tells its user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import ConversionError, UnsupportedOperatorError

_TOO_NEW = "CUDA error 222"
"""CUDA_ERROR_UNSUPPORTED_PTX_VERSION, in the list of errors of CUDA's driver API."""


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
    return ConversionError(
        f"TensorRT could not build the engine{where}: {type(cause).__name__}: {str(cause)[:600]}{said}",
        "a network that TensorRT accepts",
        "see the messages above; a smaller model, fewer dynamic dimensions, or another Torch-TensorRT release may tell "
        "more",
    )
