"""What ONNX's own schemas say of the dtypes of a node: which operands share one, and which dtypes they may have."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import NodeProto

_TENSOR = re.compile(r"^tensor\((\w+)\)$")


class Schema:
    """The schema of an operator in one opset.

    Args:
        operator: A standard one.
        opset: The graph's.
    """

    def __init__(self, operator: str, opset: int) -> None:
        from onnx import defs

        self._own = defs.get_schema(operator, opset)
        try:
            self._newest = defs.get_schema(operator)
        except defs.SchemaError:  # the newest opset has it no more
            self._newest = self._own

    def operand(self, place: int) -> str:
        """What the dtype of an operand is called: a variable (``"T"``), or the only one that it has."""
        return str(_formal(self._own.inputs, place).type_str)

    def result(self, place: int) -> str:
        """What the dtype of an output is called."""
        return str(_formal(self._own.outputs, place).type_str)

    def takes(self, place: int, dtype: int) -> bool:
        """Whether an operand may be of a dtype.

        Later opsets added bfloat16 to many operators, and TensorRT's parser reads all opsets alike.
        """
        name = f"tensor({_name(dtype)})"
        return any(name in _allowed(s, _formal(s.inputs, place).type_str) for s in (self._own, self._newest))

    def answers(self, node: NodeProto, dtypes: Sequence[int | None]) -> list[int | None]:
        """The dtypes of a node's outputs.

        Args:
            node: The node.
            dtypes: Of its operands; None: it is not known, or the operand is not given.

        Returns:
            None for what the schema does not tell.
        """
        bound: dict[str, int] = {}
        for place, dtype in enumerate(dtypes):
            if dtype is not None:
                bound.setdefault(self.operand(place), dtype)
        return [self._answer(self.result(place), bound) for place in range(len(node.output))]

    def _answer(self, variable: str, bound: Mapping[str, int]) -> int | None:
        if variable in bound:
            return bound[variable]
        allowed = _allowed(self._own, variable)
        return number(next(iter(allowed))) if len(allowed) == 1 else None


@functools.lru_cache(maxsize=512)
def schema(operator: str, opset: int) -> Schema | None:
    """The schema of a standard operator; None: the opset has no such operator."""
    from onnx import defs

    try:
        return Schema(operator, opset)
    except defs.SchemaError:
        return None


def number(tensor: str) -> int | None:
    """The number in ``TensorProto`` of ``"tensor(float)"``; None for what is no tensor."""
    from onnx import TensorProto

    found = _TENSOR.match(tensor)
    return TensorProto.DataType.Value(found[1].upper()) if found else None


def _name(dtype: int) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(dtype)).lower()


def _formal(formals: Sequence[Any], place: int) -> Any:
    return formals[min(place, len(formals) - 1)]  # the last one may stand for several


def _allowed(schema: Any, variable: str) -> set[str]:
    for constraint in schema.type_constraints:
        if constraint.type_param_str == variable:
            return set(constraint.allowed_type_strs)
    return {variable}
