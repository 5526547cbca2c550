"""From a module to an exported program with the dynamic dimensions that the caller asked for, and its checks."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import OutputKind, TensorArgument

from .._torch import HigherOrderOperator, pytree
from ..errors import ConversionError, SettingError
from .arguments import Arguments, Spec
from .regions import functional
from .structure import children, user_inputs
from .values import synthesize

_logger = logging.getLogger(__name__)

_HALF = (torch.float16, torch.bfloat16)


def export(module: torch.nn.Module, arguments: Arguments) -> ExportedProgram:
    """Exports a module in evaluation mode, every dynamic dimension as ``Dim.AUTO``.

    AUTO, because torch then finds out for itself which sizes must be equal; whether it kept them dynamic is checked
    afterwards. The module's training flags are put back.

    Raises:
        ConversionError: torch.export cannot trace the module.
    """
    if any(m.training for m in module.modules()):
        _logger.info(
            "The model is in training mode; it is converted in evaluation mode (dropout off, batch norm frozen)."
        )
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    owns = {p.dtype for p in module.parameters() if p.is_floating_point()}
    own = next(iter(owns)) if len(owns) == 1 and owns <= {*_HALF, torch.float64} else None
    dims = ShapesCollection()  # type: ignore[no-untyped-call]

    def example(leaf: Any) -> Any:
        if not isinstance(leaf, Spec):
            return leaf
        shape = trace_shape(leaf)
        tensor = synthesize(leaf, shape, generator)
        # A module in half or double precision takes its own; the public inputs stay float32 and are cast inside.
        if own is not None and tensor.dtype == torch.float32:
            tensor = tensor.to(own)
        tensor = tensor.to(device)
        if any(leaf.dynamic):
            dims[tensor] = {i: Dim.AUTO for i, dynamic in enumerate(leaf.dynamic) if dynamic}
        return tensor

    args, kwargs = pytree.tree_map(
        example, (arguments.args, arguments.kwargs), is_leaf=lambda leaf: isinstance(leaf, Spec)
    )
    dynamic = dims.dynamic_shapes(module, args, kwargs) if len(dims) else None  # type: ignore[no-untyped-call]
    with evaluation(module), _quantizers_exportable(), torch.no_grad():
        try:
            return torch.export.export(
                module,
                args,
                kwargs,
                dynamic_shapes=dynamic,
                strict=False,
            )
        except Exception as error:
            raise ConversionError(
                f"torch.export cannot trace the model: {_reason(error)}",
                "a model that torch.export traces with these inputs",
                "check the inputs' names, dtypes and shapes; make data-dependent Python control flow into tensor "
                "operations; see https://docs.pytorch.org/docs/stable/export.html",
            ) from error


def trace_shape(spec: Spec) -> tuple[int, ...]:
    """Sizes to trace at: never 1 for a dynamic dimension, which torch.export would take for a constant."""
    return tuple(max(2, opt) if dynamic else opt for opt, dynamic in zip(spec.ranges[0].opt, spec.dynamic))


def flatten(program: ExportedProgram, arguments: Arguments) -> dict[str, Spec]:
    """The Spec of every tensor input of a program, by the program's own names.

    Raises:
        SettingError: The inputs don't nest as the program's do, or differ from it in number, rank or dtype.
    """
    expected = user_inputs(program)
    args, kwargs = arguments.args, _reordered(program, arguments.kwargs)
    flat, spec = pytree.tree_flatten((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Spec))
    in_spec = program.call_spec.in_spec
    if len(flat) != len(expected) or (in_spec is not None and spec != in_spec):
        raise SettingError(
            f"The program takes {len(expected)} inputs ({', '.join(arg.name for arg in expected)}), "
            f"nested as {in_spec}; {len(flat)} were given, nested as {spec}.",
            "inputs as the program was exported with: positional ones in inputs, others in kwarg_inputs",
            "correct the inputs",
        )
    values = placeholder_values(program)
    specs: dict[str, Spec] = {}
    for arg, given in zip(expected, flat):
        if not isinstance(arg, TensorArgument):
            continue
        value = values[arg.name]
        if not isinstance(given, Spec):
            raise SettingError(
                f"The input {arg.name} was given as {given!r}.", "a tensor, or its Input", "pass torch.tensor(...)"
            )
        if given.rank != value.dim():
            raise SettingError(
                f"The input {arg.name} has {given.rank} dimensions, and the program's has {value.dim()}.",
                f"the shape {_shape_text(value)}",
                "correct the input's shape",
            )
        if given.dtype is not None and not _feeds(given.dtype, value.dtype):
            raise SettingError(
                f"The input {arg.name} was given as {_plain(given.dtype)}; the program takes {_plain(value.dtype)}.",
                _plain(value.dtype),
                f"write Input(..., dtype={_plain(value.dtype)!r}), or export the program with the other dtype",
            )
        specs[arg.name] = given
    return specs


def placeholder_values(program: ExportedProgram) -> dict[str, Any]:
    """The example value of every placeholder: shapes hold the export's symbols."""
    return {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}


def refuse_mutation(program: ExportedProgram) -> None:
    """Refuses programs that write into their buffers or inputs: an engine has neither.

    Raises:
        ConversionError: Something is mutated, or the program was exported in training mode.
    """
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target).startswith(("aten.dropout", "aten.native_dropout")):
            train = node.args[2] if len(node.args) > 2 else node.kwargs.get("train", False)
            if train is True:
                raise ConversionError(
                    f"The program was exported in training mode: {node.name} drops values at random.",
                    "a program in evaluation mode",
                    "call model.eval() before torch.export.export, or pass the module itself",
                )
    if not _writes(program):
        return
    # Only the functional form tells what a chain of in-place operations and views ends in.
    mutated = {
        spec.target or spec.arg.name: spec.kind
        for spec in functional(program).graph_signature.output_specs
        if spec.kind != OutputKind.USER_OUTPUT
    }
    inputs = [name for name, kind in mutated.items() if kind == OutputKind.USER_INPUT_MUTATION]
    state = [name for name in mutated if name not in inputs]
    if state:
        raise ConversionError(
            f"The model changes its own state: {', '.join(state)}.",
            "a model whose buffers and parameters stay as they are: in an engine they would be frozen silently",
            "pass the state as an input and return the new one as an output; for batch norm call model.eval() first",
        )
    if inputs:
        raise ConversionError(
            f"The model writes into its inputs: {', '.join(inputs)}.",
            "a model that leaves its inputs alone",
            "clone the input before changing it in place: x = x.clone()",
        )


def _writes(program: ExportedProgram) -> bool:
    """Whether any operation of the graph writes in place, or the signature itself names a mutation."""
    if any(spec.kind != OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs):
        return True
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            schema = getattr(node.target, "_schema", None)
            if node.op == "call_function" and schema is not None:
                if schema.is_mutable or str(node.target).startswith("aten.batch_norm"):
                    return True
            elif node.op == "call_function" and isinstance(node.target, HigherOrderOperator):
                return True
    return False


@contextlib.contextmanager
def evaluation(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for a while: dropout off, batch norm frozen."""
    training = [m for m in module.modules() if m.training]
    try:
        # Not module.eval(): a caller's override of train() may do more than set the flag.
        for m in training:
            m.training = False
        yield
    finally:
        for m in training:
            m.training = True


@contextlib.contextmanager
def _quantizers_exportable() -> Iterator[None]:
    """Weights quantized with modelopt: its quantizers become operators that Torch-TensorRT converts."""
    if sys.modules.get("modelopt") is None:  # None: something keeps it from being imported
        yield
        return
    from modelopt.torch.quantization.utils import export_torch_mode  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with export_torch_mode():
        yield


def _reordered(program: ExportedProgram, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments in the program's order, which the tree's comparison takes into account."""
    in_spec = program.call_spec.in_spec
    parts = children(in_spec) if in_spec is not None else []
    names = parts[1].context if len(parts) == 2 else None
    if not names or set(names) != set(kwargs):
        return kwargs
    return {name: kwargs[name] for name in names}


def _feeds(given: torch.dtype, taken: torch.dtype) -> bool:
    if given == taken:
        return True
    # Cast inside the engine: a half-precision or double program is fed float32.
    return given == torch.float32 and taken in (*_HALF, torch.float64)


def _shape_text(value: torch.Tensor) -> str:
    return "(" + ", ".join(map(str, value.shape)) + ")"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:4])[:600]}"


def module_of(program: ExportedProgram) -> torch.nn.Module:
    """The program as a module, its guards off: that a dynamic size is never 1 is only torch.export's assumption."""
    if "check_guards" in inspect.signature(program.module).parameters:
        return program.module(check_guards=False)
    return program.module()
