"""A graph that is written operation by operation, where each knows what it answers: dtypes, and shapes on the symbols
of the export."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import ExportGraphSignature, InputSpec, OutputSpec
from torch.fx import Graph, GraphModule, Node

from .._torch import FakeTensor, enable_python_dispatcher, pytree
from .operators import may_overflow
from .weights import Weights


class TypedGraph:
    """A new graph for a program.

    Args:
        original: The program whose symbols it is written on; it stays as it is.
    """

    def __init__(self, original: ExportedProgram) -> None:
        self.graph = Graph()
        self._original = original
        self._fake_mode = next(
            (
                value.fake_mode
                for node in original.graph.nodes
                for value in pytree.tree_leaves(node.meta.get("val"))
                if isinstance(value, FakeTensor)
            ),
            None,
        )

    def call(self, like: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A new operation, told to be at the place of another."""
        new = self.graph.call_function(target, args, kwargs)
        new.meta = {**like.meta, "val": self.evaluate(target, args, kwargs)}
        new.meta.pop("tensor_meta", None)
        return new

    def cast(self, node: Node, dtype: torch.dtype) -> Node:
        """A value in another dtype; a mask that half precision can't hold becomes the lowest number that it can."""
        if node.meta["val"].dtype == torch.uint8 and dtype == torch.int32:
            node = self.cast(node, torch.float32)  # uint8's way into a network
        new = self.graph.call_function(torch.ops.aten._to_copy.default, (node,), {"dtype": dtype})
        new.meta = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace", "source_fn_stack")}
        new.meta["val"] = self.in_dtype(node.meta["val"], dtype)
        narrowing = dtype in (torch.float16, torch.bfloat16) and node.meta["val"].dtype == torch.float32
        if narrowing and may_overflow(node):
            limit = torch.finfo(dtype).max
            # An additive mask of float32's minimum would become -inf, and the softmax of a row of these NaN.
            clamped = self.graph.create_node(
                "call_function", torch.ops.aten.clamp.default, (node, -limit, limit), name=f"{node.name}_finite"
            )
            clamped.meta = {**new.meta, "val": node.meta["val"]}
            new.prepend(clamped)
            new.args = (clamped,)
        return new

    def in_dtype(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What a node answers, in another dtype."""
        if value.dtype == dtype or self._fake_mode is None:
            return value
        with self._fake_mode, torch.no_grad():
            return torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=value.device)

    def evaluate(self, target: Any, args: Any, kwargs: Any) -> Any:
        """What an operation answers to nodes of this graph.

        Raises:
            Exception: PyTorch has the operation not for these dtypes.
        """
        real_args, real_kwargs = torch.fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        if self._fake_mode is None or target is operator.getitem:
            return target(*real_args, **real_kwargs)
        # The Python dispatcher, as in the export itself: without it some operators (baddbmm) take no symbolic sizes.
        with self._fake_mode, enable_python_dispatcher(), torch.no_grad():
            return target(*real_args, **real_kwargs)

    def program(
        self, inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec], names: Sequence[str], weights: Weights
    ) -> ExportedProgram:
        """The finished graph as a program, which takes its inputs by position and answers a tuple.

        Args:
            inputs: Of all placeholders.
            outputs: Of all results.
            names: Of the inputs that callers give.
            weights: What the program holds.
        """
        in_spec = pytree.tree_flatten(((0,) * len(names), {}))[1]
        out_spec = pytree.tree_flatten((0,) * len(outputs))[1]
        signature = ModuleCallSignature(inputs=[], outputs=[], in_spec=in_spec, out_spec=out_spec)
        if hasattr(signature, "forward_arg_names"):
            signature.forward_arg_names = list(names)
        return ExportedProgram(
            root=GraphModule(self._original.graph_module, self.graph),
            graph=self.graph,
            graph_signature=ExportGraphSignature(list(inputs), list(outputs)),
            state_dict=weights.state,
            range_constraints=dict(self._original.range_constraints),
            module_call_graph=[ModuleCallEntry(fqn="", signature=signature)],
            example_inputs=None,
            constants=weights.constants,
            verifiers=list(self._original.verifiers),
        )
