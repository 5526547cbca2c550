"""How callers see an engine that was made of a graph: names, dtypes and shapes of its inputs and outputs.

Shapes of outputs are told from the golden answers: what a graph declares of them is often missing, and may be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...errors import SettingError
from ...plan.files import GoldenTensors
from ...plan.manifest import Branch, Dimension, Interface, Tensor, TensorLeaf
from .inputs import FedInput
from .model import OnnxModel


def describe(
    model: OnnxModel,
    inputs: Sequence[FedInput],
    golden: GoldenTensors,
    names: Mapping[str, str],
    built: Sequence[tuple[str, str, list[int]]],
) -> Interface:
    """Describes an engine.

    Args:
        model: The graph that it was made of.
        inputs: Its inputs.
        golden: What the graph answers, by its own names.
        names: The graph's outputs → their public names.
        built: Outputs of the network that was built: name, dtype, shape.
    """
    dtypes = {name: dtype for name, dtype, _ in built}
    points = list(golden.points())
    outputs = []
    for output, name in names.items():
        answers = [answered[output] for *_, answered in points]
        sizes = [dict(_sizes(inputs, asked)) for _, _, asked, _ in points]
        declared = next((tensor.shape for tensor in model.outputs if tensor.name == output), None)
        dtype = answers[0].dtype.name
        outputs.append(
            Tensor(
                name=name, binding=output, dtype=dtype, binding_dtype=dtypes.get(output, dtype),
                shape=_shape(answers, sizes, declared),
            )
        )  # fmt: skip
    taken = tuple(
        Tensor(name=one.name, binding=one.name, dtype=one.dtype, binding_dtype=one.dtype, shape=one.shape)
        for one in inputs
    )
    leaves = tuple(TensorLeaf(name=one.name) for one in inputs)
    by_name = Branch(kind="dict", keys=tuple(one.name for one in inputs), items=leaves)
    nothing = Branch(kind="dict", keys=(), items=())
    positional = Branch(kind="tuple", items=leaves)
    results = tuple(TensorLeaf(name=name) for name in names.values())
    # One input is passed by position, several by name, as ONNX Runtime takes them.
    one = len(inputs) == 1
    return Interface(
        inputs=taken,
        outputs=tuple(outputs),
        arguments=Branch(
            kind="tuple", items=(positional, nothing) if one else (Branch(kind="tuple", items=()), by_name)
        ),
        result=results[0] if len(results) == 1 else Branch(kind="dict", keys=tuple(names.values()), items=results),
    )


def output_names(model: OnnxModel, wanted: Sequence[str] | None) -> dict[str, str]:
    """The graph's outputs → their public names.

    Raises:
        SettingError: Another number of names was given, or one twice.
    """
    own = [tensor.name for tensor in model.outputs]
    names = list(wanted) if wanted is not None else own
    if len(names) != len(own) or len(set(names)) != len(names):
        raise SettingError(
            f"output_names has {len(names)} names, {len(set(names))} of them different.",
            f"{len(own)}: the graph's outputs are {', '.join(own)}",
            "give every output a name of its own, or leave output_names out",
        )
    return dict(zip(own, names))


def _sizes(inputs: Sequence[FedInput], asked: Mapping[str, np.ndarray]) -> Iterator[tuple[str, int]]:
    for one in inputs:
        for name, size in zip(one.shape, asked[one.name].shape):
            if isinstance(name, str):
                yield name, size


def _shape(
    answers: Sequence[np.ndarray], sizes: Sequence[Mapping[str, int]], declared: Sequence[object] | None
) -> tuple[Dimension, ...]:
    """The symbolic shape that all answers have."""
    shape: list[Dimension] = []
    free = 0
    for dim in range(answers[0].ndim):
        seen = [answer.shape[dim] for answer in answers]
        told = declared[dim] if declared is not None and dim < len(declared) else None
        size = _dimension(seen, sizes, told)
        if size is None:
            size, free = f"u{free}", free + 1
        shape.append(size)
    return tuple(shape)


def _dimension(seen: Sequence[int], sizes: Sequence[Mapping[str, int]], told: object) -> Dimension | None:
    """A number, a name, or a multiple of one and a number; None: it depends on something else."""
    names = list(sizes[0]) if sizes else []
    fitting = [name for name in names if [size[name] for size in sizes] == list(seen)]
    if told in fitting:
        return str(told)
    if len(set(seen)) == 1 and (isinstance(told, int) or not fitting):
        return seen[0]
    if fitting:
        return fitting[0]
    for name in names:
        given = [size[name] for size in sizes]
        if len(set(given)) < 3:
            continue
        low, high = given.index(min(given)), given.index(max(given))
        slope, rest = divmod(seen[high] - seen[low], given[high] - given[low])
        start = seen[low] - slope * given[low]
        if not rest and slope > 0 and all(slope * n + start == s for n, s in zip(given, seen)):
            return (
                f"{slope}*{name}" * (slope > 1)
                + name * (slope == 1)
                + (f" + {start}" if start > 0 else "")
                + (f" - {-start}" if start < 0 else "")
            )
    return None
