"""The program that is converted: the exported one with its arithmetic at a precision, and flat inputs and outputs.

TensorRT networks are strongly typed: the precision of an engine is the precision of its graph. So the graph is
rewritten, node by node, with the types that each node then has, on the symbols of the original export:

- Inputs and weights are cast to the precision, unless the program itself casts them to float32 first.
- Where an operation then gets operands of several floating dtypes, elementwise ones promote as PyTorch does, and all
  others are brought to the precision. Explicit casts to float32 in the model (a norm computed in float32, say) stay;
  those to another half precision (autocast's, say) become casts to the one that was asked for.
- Operators that are not aten's, of complex numbers or of bits, and those that PyTorch has not in half precision, keep
  the dtypes that the model gives them.
- Integers that TensorRT has no arithmetic for are held as int32 (:mod:`.integers`).
- Outputs are cast back to what they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    SymIntArgument,
    TensorArgument,
)
from torch.fx import Node

from .._torch import HigherOrderOperator, OpOverload, pytree
from ..errors import ConversionError
from . import maxima, rewrites
from .integers import FLOATS, held, narrow, public_dtype, wrap_limits
from .operators import (
    ARITHMETIC,
    CASTS,
    NORMALIZATIONS,
    PROMOTING,
    QUANTIZERS,
    dtypes_of,
    is_floating,
    keeps_dtypes,
    no_double,
    operands,
    operator_name,
    upcast_first,
    written_operands,
)
from .regions import written_out
from .structure import Output, output_node
from .typed_graph import TypedGraph
from .weights import Weights

_WRITTEN_OUT = {
    "adaptive_avg_pool2d": rewrites.averaged,
    "as_strided": rewrites.restated,
    "unfold": rewrites.windows,
    "add": rewrites.biased_linear,
    "addmm": rewrites.biased_linear,
    "baddbmm": rewrites.biased_product,
    "scaled_dot_product_attention": rewrites.masked_attention,
    "slice_scatter": rewrites.joined,
    "select_scatter": rewrites.joined,
}


@dataclass(frozen=True)
class Prepared:
    """What goes into the network."""

    program: ExportedProgram
    inputs: tuple[str, ...]
    """Names of the inputs, in the program's order."""
    kept: tuple[str, ...]
    """Arithmetic that stays in float32 because the model casts its operands there explicitly."""
    uint8: tuple[int, ...] = ()
    """Positions of the outputs that are uint8: float32 here, cast where they leave the network."""

    def dtypes(self) -> set[str]:
        """Every dtype that a value of the network has, by torch's name."""
        dtypes = {dtype for node in self.program.graph.nodes for dtype in dtypes_of(node.meta.get("val"))}
        for node in self.program.graph.nodes:
            # modelopt's quantizers give back what they take; FP8 lies between: (x, amax, 8 bits, 4 of exponent).
            if operator_name(node) in QUANTIZERS and 4 in node.args[2:]:
                dtypes.add(torch.float8_e4m3fn)
        return {str(dtype).removeprefix("torch.") for dtype in dtypes}


def prepare(
    program: ExportedProgram,
    outputs: Sequence[Output],
    dtype: torch.dtype | None,
    fed: Mapping[str, torch.dtype],
) -> Prepared:
    """Rewrites a program for conversion; the given one stays as it is.

    Args:
        program: What torch.export gave.
        outputs: Those that the engine computes.
        dtype: The precision of the arithmetic; None: as it is. float64 becomes float32 in any case, as TensorRT has
            none.
        fed: The dtype of each input as the engine is fed it.

    Raises:
        ConversionError: An operator can't be computed in the dtypes that TensorRT has.
    """
    return _Rewriter(*written_out(program, outputs), dtype, fed).run()


class _Rewriter:
    def __init__(
        self,
        program: ExportedProgram,
        outputs: Sequence[Output],
        dtype: torch.dtype | None,
        fed: Mapping[str, torch.dtype],
    ) -> None:
        self.program = program
        self.outputs = outputs
        self.dtype = dtype
        self.fed = fed
        self.typed = TypedGraph(program)
        self.graph = self.typed.graph
        self.nodes: dict[Node, Node] = {}
        self.kept: list[str] = []
        self.weights = Weights(program)

    def run(self) -> Prepared:
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        placeholders = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        casts: list[tuple[Node, torch.dtype]] = []
        kept_specs: list[InputSpec] = []
        names: list[str] = []
        for node in placeholders:
            spec = specs[node.name]
            user = spec.kind == InputKind.USER_INPUT
            if user and not isinstance(spec.arg, TensorArgument):
                continue  # a number that the export baked in: the graph no longer reads it
            kept_specs.append(spec)
            new = self.nodes[node] = self.graph.node_copy(node, self._mapped)
            new.name = node.name  # a name such as `input` is a builtin's, which the new graph would number
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor):
                continue
            wanted = self._entry_dtype(node, value.dtype)
            if user:
                names.append(node.name)
                new.meta["val"] = self.typed.in_dtype(value, self.fed[node.name])
                if self.fed[node.name] != wanted:
                    casts.append((node, wanted))
            elif wanted != value.dtype:
                self.weights.cast(spec, wanted)
                new.meta["val"] = self.typed.in_dtype(value, wanted)
        for node, wanted in casts:  # after the last placeholder, as a program requires
            self.nodes[node] = self.typed.cast(self.nodes[node], wanted)
        for node in self.program.graph.nodes:
            if node.op not in ("placeholder", "output"):
                self._copy(node)
        out_specs = self._outputs()
        uint8 = tuple(i for i, output in enumerate(self.outputs) if self._is_uint8(output))
        made = self.typed.program(kept_specs, out_specs, names, self.weights)
        return Prepared(made, tuple(names), tuple(self.kept), uint8)

    def _is_uint8(self, output: Output) -> bool:
        return any(n.name == output.node and torch.uint8 in dtypes_of(n.meta.get("val")) for n in self.nodes)

    def _entry_dtype(self, node: Node, own: torch.dtype) -> torch.dtype:
        """What an input or weight is from here on."""
        own = held(no_double(own))
        if self.dtype is None or own not in (torch.float32, torch.float16, torch.bfloat16):
            return own
        return own if own == torch.float32 and upcast_first(node) else self.dtype

    def _copy(self, node: Node) -> None:
        """Copies one node, with the casts that it now needs before it."""
        if node.op != "call_function":
            self.nodes[node] = self.graph.node_copy(node, self._mapped)
            return
        name = operator_name(node)
        if name == "_assert_tensor_metadata":
            return  # it would hold the dtypes of the original program
        read = list(node.all_input_nodes)
        changed = any(dtypes_of(n.meta.get("val")) != dtypes_of(self.nodes[n].meta.get("val")) for n in read)
        narrows = any(narrow(n.meta.get("val")) for n in (node, *read))
        wrapped = wrap_limits(node) if narrows else None
        args, kwargs = pytree.tree_map(self._dtype_argument, (node.args, node.kwargs))
        mapped_args, mapped_kwargs = torch.fx.node.map_arg((args, kwargs), self._mapped)
        named = (args, kwargs) != (node.args, node.kwargs)
        doubles = any(no_double(dtype) != dtype for dtype in dtypes_of(node.meta.get("val")))
        if name == "batch_norm":
            mapped_args = rewrites.affine(self.typed.call, mapped_args)
        written = maxima.rewritten if maxima.of_product(node) else _WRITTEN_OUT.get(name)
        if not changed and not doubles and not named and written is None:
            new = self.nodes[node] = self.graph.node_copy(node, self._mapped)
            new.args, new.kwargs = mapped_args, mapped_kwargs
            self._note_kept(node, name, mapped_args)
            return
        if isinstance(node.target, HigherOrderOperator):
            # A branch of control flow is a graph of its own, with the types that it was traced with.
            originals: dict[Node, Any] = {self.nodes[n]: n.meta.get("val") for n in read}
            mapped_args, mapped_kwargs = torch.fx.node.map_arg(
                (mapped_args, mapped_kwargs),
                lambda n: self.typed.cast(n, originals[n].dtype) if is_floating(originals.get(n)) else n,
            )
            new = self.nodes[node] = self.graph.node_copy(node, self._mapped)
            new.args, new.kwargs = mapped_args, mapped_kwargs
            return
        back = None
        if narrows and name in FLOATS:
            back = held(node.meta["val"].dtype)
            mapped_args, mapped_kwargs = self._in_float(mapped_args, mapped_kwargs)
        elif keeps_dtypes(node):
            mapped_args, mapped_kwargs = self._restored(args, kwargs)
        else:
            mapped_args, mapped_kwargs = self._unify(node, name, mapped_args, mapped_kwargs)
        mapped_args, mapped_kwargs = self._clamped(mapped_args, mapped_kwargs)
        if written is not None:
            replaced = written(self.typed.call, node, mapped_args, mapped_kwargs)
            if replaced is not None:
                self.nodes[node] = replaced
                self._note_kept(node, name, mapped_args)
                return
        try:
            value = self.typed.evaluate(node.target, mapped_args, mapped_kwargs)
        except Exception:  # PyTorch has it for the model's own dtypes only
            mapped_args, mapped_kwargs = self._restored(args, kwargs)
            value = self._last_try(node, mapped_args, mapped_kwargs)
        new = self.nodes[node] = self.graph.node_copy(node, self._mapped)
        new.args, new.kwargs = mapped_args, mapped_kwargs
        new.meta["val"] = value
        new.meta.pop("tensor_meta", None)
        if back is not None:
            self.nodes[node] = self.typed.cast(new, back)
        if wrapped is not None:
            self.nodes[node] = rewrites.wrapped(self.typed.call, new, *wrapped)
        self._note_kept(node, name, mapped_args)

    def _dtype_argument(self, value: Any) -> Any:
        """A dtype among an operation's arguments, as the network has it."""
        if self.dtype is not None and value in (torch.float16, torch.bfloat16):
            return self.dtype
        return held(no_double(value))

    def _restored(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Operands of the dtypes that the model itself gives them, but for those that TensorRT has not."""

        def restore(node: Node) -> Node:
            new = self.nodes[node]
            own: Any = node.meta.get("val")
            if not is_floating(own) or (dtype := no_double(own.dtype)) == new.meta["val"].dtype:
                return new
            return self.typed.cast(new, dtype)

        return torch.fx.node.map_arg((args, kwargs), restore)

    def _in_float(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        def cast(node: Node) -> Node:
            return self.typed.cast(node, torch.float32) if torch.int32 in dtypes_of(node.meta.get("val")) else node

        return torch.fx.node.map_arg((args, kwargs), cast)

    def _last_try(self, node: Node, args: Any, kwargs: Any) -> Any:
        try:
            return self.typed.evaluate(node.target, args, kwargs)
        except Exception as error:
            raise ConversionError(
                f"{node.name} ({node.target}) can't be computed in the dtypes that TensorRT has: "
                f"{type(error).__name__}: {str(error).strip()[:300]}",
                "operators that PyTorch computes in float32 too",
                "cast its operands in the model, or leave the operator out of it",
            ) from error

    def _unify(self, node: Node, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Brings the floating operands of an operation to one dtype, where it needs that."""
        tensors = [n for n in operands((args, kwargs)) if is_floating(n.meta.get("val"))]
        dtypes = {n.meta["val"].dtype for n in tensors}
        if len(dtypes) < 2 or not isinstance(node.target, OpOverload):
            return args, kwargs
        pointwise = torch.Tag.pointwise in node.target.tags
        if name in PROMOTING or name in CASTS or name in QUANTIZERS or (pointwise and not name.startswith("prelu")):
            return args, kwargs
        written = written_operands(node.target, args)
        if written:
            wanted = written[0].meta["val"].dtype
        elif name in NORMALIZATIONS:
            wanted = tensors[0].meta["val"].dtype
        else:
            wanted = self.dtype or torch.promote_types(*list(dtypes)[:2])

        def cast(n: Node) -> Node:
            differs = is_floating(n.meta.get("val")) and n.meta["val"].dtype != wanted and n not in written
            return self.typed.cast(n, wanted) if differs else n

        return torch.fx.node.map_arg((args, kwargs), cast)

    def _clamped(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Numbers beyond the dtype's range, such as float32's minimum in a mask, become its own limit."""
        dtypes = {n.meta["val"].dtype for n in operands((args, kwargs)) if is_floating(n.meta.get("val"))}
        if len(dtypes) != 1:
            return args, kwargs
        limit = torch.finfo(dtypes.pop()).max

        def clamp(value: Any) -> Any:
            if type(value) is float and math.isfinite(value) and abs(value) > limit:
                return math.copysign(limit, value)
            return value

        return pytree.tree_map(clamp, (args, kwargs), is_leaf=lambda v: isinstance(v, Node))  # type: ignore[no-any-return]

    def _note_kept(self, node: Node, name: str, args: Any) -> None:
        if self.dtype in (None, torch.float32) or name not in ARITHMETIC:
            return
        dtypes = {n.meta["val"].dtype for n in operands(args) if is_floating(n.meta.get("val"))}
        if dtypes == {torch.float32}:
            self.kept.append(node.name)

    def _outputs(self) -> list[OutputSpec]:
        originals = {node.name: node for node in self.program.graph.nodes}
        results: list[Node] = []
        for output in self.outputs:
            original = originals[output.node]
            new = self.nodes[original]
            value = original.meta.get("val")
            if isinstance(value, torch.Tensor):
                public = public_dtype(value.dtype)
                wanted = torch.float32 if public == torch.uint8 else public
                new = new if new.meta["val"].dtype == wanted else self.typed.cast(new, wanted)
            results.append(new)
        node = self.graph.output(tuple(results))
        node.meta.update(output_node(self.program).meta)
        node.meta["val"] = tuple(n.meta.get("val") for n in results)
        return [
            OutputSpec(
                OutputKind.USER_OUTPUT,
                (TensorArgument if isinstance(n.meta.get("val"), torch.Tensor) else SymIntArgument)(name=n.name),
                None,
            )
            for n in results
        ]

    def _mapped(self, node: Node) -> Node:
        return self.nodes[node]
