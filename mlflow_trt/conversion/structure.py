"""Which outputs the engine computes, what the host puts beside them, and how both nest in the manifest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymIntArgument,
    TensorArgument,
)
from torch.fx import Node

from .._torch import OpOverload, pytree
from ..errors import ConversionError, SettingError
from ..inputs import DTYPES
from ..plan.manifest import Branch, ConstantLeaf, InputLeaf, Structure, TensorLeaf
from .integers import public_dtype
from .operators import CASTS, COPIES, written_operands


@dataclass(frozen=True)
class Output:
    """One output that the engine computes."""

    node: str
    """The program's node."""
    name: str
    """What callers know it by."""
    positions: tuple[int, ...]
    """Where it stands among the program's flat outputs: more than once where the model returns it repeatedly."""


def user_inputs(program: ExportedProgram) -> list[Any]:
    """The program's own inputs in flat order: a TensorArgument, or a constant that the export baked in."""
    return [spec.arg for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]


def computed_outputs(program: ExportedProgram, names: Sequence[str] | None) -> list[Output]:
    """The unique outputs that are neither an input handed through nor a constant.

    TensorRT can't have an output twice, renames an input's binding that is also an output, and refuses constants, so
    only these go into the network.

    Args:
        program: The exported program.
        names: The caller's names for them, or None.

    Raises:
        SettingError: The number of names is wrong, or one is given twice.
        ConversionError: There is nothing to compute, or an output has a dtype that engines have not.
    """
    inputs = {arg.name for arg in user_inputs(program) if isinstance(arg, TensorArgument)}
    paths = _paths(_out_spec(program))
    positions_of: dict[str, list[int]] = {}
    sources = _sources(program)
    for position, arg in enumerate(user_outputs(program)):
        if isinstance(arg, (TensorArgument, SymIntArgument)) and (source := sources[arg.name]) not in inputs:
            positions_of.setdefault(source, []).append(position)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    for node in positions_of:
        dtype = getattr(values[node], "dtype", None)
        if dtype is not None and str(public_dtype(dtype)).removeprefix("torch.") not in DTYPES:
            plain = str(dtype).removeprefix("torch.")
            raise ConversionError(
                f"The output {node} is {plain}, which no output of an engine can be.",
                f"outputs of {', '.join(DTYPES)}",
                "return torch.view_as_real(...) of it, and put it together after the engine"
                if dtype.is_complex
                else "cast it in the model",
            )
    if not positions_of:
        raise ConversionError(
            "The model computes nothing: every output is an input or a constant.",
            "at least one output tensor that depends on the inputs",
            "return what the model computes",
        )
    default = [_default_name(paths[positions[0]], positions[0]) for positions in positions_of.values()]
    if names is not None and (len(names) != len(positions_of) or len(set(names)) != len(names) or not all(names)):
        raise SettingError(
            f"output_names has {len(names)} names: {', '.join(map(repr, names))}.",
            f"{len(positions_of)} different names, one for each computed output (now {', '.join(default)})",
            "name every output once; repeated, constant and handed-through outputs have no name of their own",
        )
    chosen = list(names) if names is not None else _unique(default)
    return [Output(node, name, tuple(p)) for (node, p), name in zip(positions_of.items(), chosen)]


def result(program: ExportedProgram, outputs: Sequence[Output]) -> Structure:
    """How a call's outputs are put together again on the host."""
    computed = {output.node: output.name for output in outputs}
    sources = _sources(program)
    leaves: list[Structure] = []
    for arg in user_outputs(program):
        if isinstance(arg, ConstantArgument):
            leaves.append(ConstantLeaf(value=_constant(arg.value, "output")))
        elif (source := sources[arg.name]) in computed:
            leaves.append(TensorLeaf(name=computed[source]))
        else:
            leaves.append(InputLeaf(name=source))
    return _build(_out_spec(program), iter(leaves).__next__)


def arguments(program: ExportedProgram) -> Branch:
    """How a call's ``(args, kwargs)`` nest."""
    leaves: list[Structure] = []
    for arg in user_inputs(program):
        if isinstance(arg, TensorArgument):
            leaves.append(TensorLeaf(name=arg.name))
        elif isinstance(arg, ConstantArgument):
            leaves.append(ConstantLeaf(value=_constant(arg.value, "input")))
        else:
            raise ConversionError(
                f"The input {arg.name} is a number that the program was exported with as a symbol.",
                "tensors, and numbers that stay the same",
                "pass the number as a tensor, or export without a Dim for it",
            )
    spec = program.call_spec.in_spec
    if spec is None:
        return Branch(kind="tuple", items=(Branch(kind="tuple", items=tuple(leaves)), Branch(kind="dict", items=())))
    built = _build(spec, iter(leaves).__next__)
    assert isinstance(built, Branch)
    return built


def portable(program: ExportedProgram) -> ExportedProgram:
    """The program with tuples, lists and dicts alone around its inputs and outputs.

    torch.export.save takes no namedtuple, nor what ``torch.topk`` returns, and what a package registers (transformers'
    outputs) is read back only where that package is. Which class it was is in the manifest.
    """
    entry, *others = program.module_call_graph
    signature = entry.signature
    if signature is None or (_is_plain(signature.in_spec) and _is_plain(signature.out_spec)):
        return program
    signature = copy.copy(signature)
    signature.in_spec, signature.out_spec = _plain_spec(signature.in_spec), _plain_spec(signature.out_spec)
    entry = copy.copy(entry)
    entry.signature = signature
    copied = copy.copy(program)
    copied._module_call_graph = [entry, *others]
    return copied


def _is_plain(spec: pytree.TreeSpec) -> bool:
    return spec.is_leaf() or (spec.type in (tuple, list, dict) and all(map(_is_plain, children(spec))))


def _plain_spec(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """A spec of the same leaves, with a tuple or dict for every other container."""
    if _is_plain(spec):
        return spec
    return pytree.tree_flatten(_hollow(spec))[1]


def _hollow(spec: pytree.TreeSpec) -> Any:
    """The containers of a spec, plain ones, around leaves that mean nothing."""
    if spec.is_leaf():
        return 0
    keys, kind = _keys(spec)
    items = [_hollow(child) for child in children(spec)]
    if kind == "dict":
        return dict(zip(keys or (), items))
    return items if kind == "list" else tuple(items)


def _sources(program: ExportedProgram) -> dict[str, str]:
    """For every node the one whose value it has: a copy of an input or output is no computation.

    One that is written to, or made of what is written to later, is.
    """
    sources: dict[str, str] = {}
    written = _written(program)
    for node in program.graph.nodes:
        target = node.target
        name = str(target._schema.name).split("::")[-1] if isinstance(target, OpOverload) else ""
        operand = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        same = operand is not None and _dtype(operand) is not None and _dtype(operand) == _dtype(node)
        same = same and node not in written and operand not in written
        sources[node.name] = sources[operand.name] if same and name in (*COPIES, *CASTS) else node.name  # type: ignore[union-attr]
    return sources


def _written(program: ExportedProgram) -> set[Node]:
    """Nodes whose memory an operation changes in place: what it names, and what that is a view of."""
    reached: set[Node] = set()
    for node in program.graph.nodes:
        if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
            continue
        todo = written_operands(node.target, node.args)
        while todo:
            current = todo.pop()
            if current not in reached:
                reached.add(current)
                if current.op == "call_function":
                    todo += current.all_input_nodes[:1]  # what it may be a view of
    return reached


def _dtype(node: Node) -> Any:
    return getattr(node.meta.get("val"), "dtype", None)


def output_node(program: ExportedProgram) -> Node:
    """The graph's output node."""
    nodes: list[Node] = list(program.graph.nodes)
    return next(node for node in reversed(nodes) if node.op == "output")


def children(spec: pytree.TreeSpec) -> list[pytree.TreeSpec]:
    """A tree's children; the attribute is deprecated in later releases, and the method missing in earlier ones."""
    children = getattr(spec, "children", None)
    return list(children() if callable(children) else spec.children_specs)


def user_outputs(program: ExportedProgram) -> list[Any]:
    """The program's own outputs in flat order: a TensorArgument, a SymIntArgument or a constant."""
    return [s.arg for s in program.graph_signature.output_specs if s.kind == OutputKind.USER_OUTPUT]


def _out_spec(program: ExportedProgram) -> pytree.TreeSpec:
    spec = program.call_spec.out_spec
    if spec is None:
        return pytree.tree_flatten((0,) * len(user_outputs(program)))[1]
    return spec  # type: ignore[no-any-return]


def _constant(value: Any, what: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConversionError(
        f"The model has an {what} of type {type(value).__name__}: {value!r}.",
        "tensors, numbers, strings and None",
        f"leave the {what} out, or make it one of these",
    )


def _build(spec: pytree.TreeSpec, leaf: Callable[[], Structure]) -> Structure:
    if spec.is_leaf():
        return leaf()
    keys, kind = _keys(spec)
    items = tuple(_build(child, leaf) for child in children(spec))
    type_name = _namedtuple(spec).__name__ if kind == "namedtuple" else None
    return Branch(kind=kind, type_name=type_name, keys=keys, items=items)


def _keys(spec: pytree.TreeSpec) -> tuple[tuple[Any, ...] | None, Any]:
    """The keys of a container's children, and the manifest's kind of it."""
    if spec.type in (tuple, list):
        return None, spec.type.__name__
    if (named := _namedtuple(spec)) is not None:
        return _fields(named), "namedtuple"
    context = spec.context
    # Dataclasses (torch.export.register_dataclass) flatten to [names, names of None]; defaultdict to [factory, keys];
    # OrderedDict, and transformers' ModelOutput, to their keys.
    candidates = [context, *(context if isinstance(context, (list, tuple)) else [])]
    for names in candidates:
        if isinstance(names, (list, tuple)) and len(names) == len(children(spec)):
            if all(isinstance(name, (str, int)) for name in names):
                return tuple(names), "dict"
            if spec.type is dict or issubclass(spec.type, dict):
                raise ConversionError(
                    f"The model has a dict with the keys {names!r}.", "strings or integers as keys", "rename the keys"
                )
    return None, "tuple"


def _namedtuple(spec: pytree.TreeSpec) -> Any:
    for candidate in (spec.type, spec.context):
        if isinstance(candidate, type) and issubclass(candidate, tuple) and _fields(candidate):
            return candidate
    return None


def _fields(kind: type) -> tuple[str, ...]:
    """The fields of a namedtuple, or of what torch.max returns, which is none but looks like one."""
    return tuple(getattr(kind, "_fields", getattr(kind, "__match_args__", ())))


def _paths(spec: pytree.TreeSpec, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if spec.is_leaf():
        return [above]
    keys, _ = _keys(spec)
    steps = keys if keys is not None else range(len(children(spec)))
    return [path for key, child in zip(steps, children(spec)) for path in _paths(child, (*above, key))]


def _default_name(path: tuple[Any, ...], position: int) -> str:
    """``a.0.b`` where the structure gives names, else ``output{flat index}`` as Torch-TensorRT's own bindings."""
    if any(isinstance(key, str) for key in path):
        return ".".join(map(str, path))
    return f"output{position}"


def _unique(names: Sequence[str]) -> list[str]:
    taken: list[str] = []
    for name in names:
        candidate, number = name, 2
        while candidate in taken:
            candidate, number = f"{name}_{number}", number + 1
        taken.append(candidate)
    return taken
