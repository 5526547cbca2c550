"""What ONNX Runtime answers at every profile point: the inputs and outputs that engines are later compared with."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConversionError, SettingError
from ...plan.dtypes import STORAGE
from ...plan.files import BETWEEN, GoldenTensors
from .. import onnx_runtime
from ..points import Point, Shapes, between, shapes_text
from .inputs import FedInput
from .values import InputRole, synthesize

_logger = logging.getLogger(__name__)

LIMIT = 256 << 20
"""Bytes that the golden tensors of one plan may take."""

_SAME = 1e-4
"""Relative difference of two answers to the same inputs that is no other answer: threads may add up in turn."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Asked:
    point: Point
    values: Arrays

    @property
    def prefix(self) -> str:
        return f"{self.point.profile}.{self.point.name}"

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values.values())


class Answers:
    """What a graph answers, by ONNX Runtime on the CPU.

    Args:
        path: The graph's file; its weights lie beside it.

    Raises:
        ConversionError: ONNX Runtime does not take the graph.
    """

    def __init__(self, path: Path) -> None:
        try:
            try:
                self._session = onnx_runtime.session(path)
            except onnx_runtime.NotThereError:  # it has few kernels for half precision
                self._session = onnx_runtime.widened_session(path)
        except Exception as error:
            raise ConversionError(
                f"ONNX Runtime can't compute the graph, so nothing says what the engine should answer: "
                f"{onnx_runtime.words(error)}",
                "a graph that ONNX Runtime computes on the CPU",
                "look at what it names; a newer onnxruntime may have the operator",
            ) from error
        self._taken = {i.name: i.type for i in self._session.get_inputs()}
        self._names = [o.name for o in self._session.get_outputs()]

    def __call__(self, values: Mapping[str, np.ndarray]) -> Arrays:
        """Answers, by output name; what numpy lacks is float32.

        Raises:
            Exception: ONNX Runtime's own: the graph fails at these inputs.
        """
        fed = {name: _as(values[name], kind) for name, kind in self._taken.items()}
        return {name: _plain(value) for name, value in zip(self._names, self._session.run(self._names, fed))}


_KINDS = {"tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(float)": np.float32}


def _as(value: np.ndarray, kind: str) -> np.ndarray:
    wanted = _KINDS.get(kind)
    return value if wanted is None else value.astype(wanted, copy=False)


def _plain(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 or array.dtype.name == "bfloat16" else array


def compute(
    path: Path,
    inputs: Sequence[FedInput],
    roles: Mapping[str, InputRole],
    given: Sequence[Any] | None = None,
    limit: int = LIMIT,
) -> GoldenTensors:
    """Asks the graph at min, opt, max and one size between of every profile, and with the caller's own inputs.

    Args:
        path: The graph's file; its weights lie beside it.
        inputs: Its inputs.
        roles: What their numbers are for.
        given: The caller's own inputs: dicts by name, or tuples in the graph's order. The first also fills the points.
        limit: Bytes in all; the smallest points are kept.

    Raises:
        SettingError: The caller's inputs don't fit.
        ConversionError: ONNX Runtime fails at a point that the engine is to accept, or the answers are random.
    """
    own = [_by_name(inputs, value, i) for i, value in enumerate(given or ())]
    answers = Answers(path)
    cases = [*_filled(inputs, roles, own[0] if own else {}, points(inputs)), *_user_cases(inputs, own)]
    asked: Arrays = {}
    answered: Arrays = {}
    size = 0
    for case in _within(cases, limit):
        try:
            results = answers(case.values)
        except Exception as error:
            if case.point.name == BETWEEN:
                # Some models take multiples only. That they hold at min, opt and max is what the caller said.
                _logger.info("ONNX Runtime fails at %s: %s", shapes_text(case.point), onnx_runtime.words(error))
                continue
            raise _fails(case, error) from error
        if not asked:
            _refuse_random(case, results, answers(case.values))
        size += case.nbytes + sum(result.nbytes for result in results.values())
        if size > limit and asked:
            _logger.info("Golden tensors at %s are left out: they exceed %d MiB.", case.prefix, limit >> 20)
            continue
        asked.update({f"{case.prefix}/{name}": value for name, value in case.values.items()})
        answered.update({f"{case.prefix}/{name}": value for name, value in results.items()})
    return GoldenTensors(asked, answered)


def points(inputs: Sequence[FedInput]) -> list[Point]:
    """Opt, min, max and one size between of every profile; one where they are the same."""
    made: list[Point] = []
    for profile in range(max((len(one.ranges) for one in inputs), default=1)):
        taken: list[Shapes] = []
        for name in ("opt", "min", "max"):
            shapes = {one.name: tuple(getattr(one.range(profile), name)) for one in inputs}
            if shapes not in taken:
                taken.append(shapes)
                made.append(Point(profile, name, shapes))
        shapes = _between(inputs, profile)
        if shapes not in taken:
            made.append(Point(profile, BETWEEN, shapes))
    return made


def _between(inputs: Sequence[FedInput], profile: int) -> Shapes:
    """A size between for every dimension that has one, equal ones for dimensions of one name."""
    sizes: dict[str, int] = {}
    for one in inputs:
        for dim, name in enumerate(one.shape):
            if isinstance(name, str):
                low, opt, high = one.span(dim, profile)
                sizes.setdefault(name, next(between(low, opt, high), opt))
    return {one.name: tuple(n if isinstance(n, int) else sizes[n] for n in one.shape) for one in inputs}


def _filled(
    inputs: Sequence[FedInput],
    roles: Mapping[str, InputRole],
    source: Mapping[str, np.ndarray],
    wanted: Iterable[Point],
) -> list[_Asked]:
    generator = np.random.default_rng(0)
    return [
        _Asked(
            point,
            {
                one.name: synthesize(one, point.shapes[one.name], generator, source.get(one.name), roles.get(one.name))
                for one in inputs
            },
        )
        for point in wanted
    ]


def _by_name(inputs: Sequence[FedInput], value: Any, index: int) -> Arrays:
    """One golden input as arrays by name."""
    if not isinstance(value, Mapping):
        several = value if isinstance(value, (tuple, list)) else (value,)
        value = dict(zip((one.name for one in inputs), several)) if len(several) == len(inputs) else {}
    if set(value) != {one.name for one in inputs}:
        raise SettingError(
            f"golden_inputs[{index}] has {', '.join(map(str, value)) or 'another number of arrays'}.",
            f"{len(inputs)}: {', '.join(one.name for one in inputs)}",
            "give each as a dict by input name, or as the tuple of arrays in the graph's order",
        )
    arrays = {one.name: np.asarray(value[one.name], dtype=STORAGE[one.dtype], order="C") for one in inputs}
    sizes: dict[str, tuple[str, int]] = {}
    for one in inputs:
        for dim, name in enumerate(one.shape[: arrays[one.name].ndim]):
            if isinstance(name, str):
                where, n = sizes.setdefault(name, (one.name, arrays[one.name].shape[dim]))
                if n != arrays[one.name].shape[dim]:
                    raise SettingError(
                        f"golden_inputs[{index}]: {name} is {n} in {where} and {arrays[one.name].shape[dim]} in "
                        f"{one.name}.",
                        "one size for dimensions of one name",
                        "correct the arrays",
                    )
    return arrays


def _user_cases(inputs: Sequence[FedInput], own: Sequence[Arrays]) -> Iterator[_Asked]:
    profiles = range(max((len(one.ranges) for one in inputs), default=1))
    for i, values in enumerate(own):
        fitting = [p for p in profiles if all(_admits(one, p, values[one.name]) for one in inputs)]
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        if not fitting:
            raise SettingError(
                f"golden_inputs[{i}] has the shapes {', '.join(f'{n} {list(s)}' for n, s in shapes.items())}.",
                "shapes within one optimization profile",
                "widen the profile, or leave these inputs out",
            )
        yield _Asked(Point(fitting[0], f"user{i}", shapes), values)


def _admits(one: FedInput, profile: int, value: np.ndarray) -> bool:
    r = one.range(profile)
    return value.ndim == len(r.min) and all(lo <= n <= hi for lo, n, hi in zip(r.min, value.shape, r.max))


def _within(cases: Sequence[_Asked], limit: int) -> list[_Asked]:
    """Leaves out the largest points, those between first, until the inputs alone are within the limit."""
    kept: list[_Asked] = []
    size = 0
    for case in sorted(cases, key=lambda case: (case.point.name == BETWEEN, case.nbytes)):
        if size + case.nbytes > limit and kept:
            _logger.info("Golden inputs at %s are left out: they would exceed %d MiB.", case.prefix, limit >> 20)
            continue
        size += case.nbytes
        kept.append(case)
    return kept


def _refuse_random(case: _Asked, first: Arrays, second: Arrays) -> None:
    for name, one in first.items():
        if not np.allclose(one, second[name], rtol=_SAME, atol=_SAME, equal_nan=True):
            raise ConversionError(
                f"The graph answers the same inputs differently from call to call ({shapes_text(case.point)}: {name}).",
                "a model whose answers depend on its inputs alone",
                "export the model without random operations and in evaluation mode, or pass the random numbers as an "
                "input",
            )


def _fails(case: _Asked, error: Exception) -> ConversionError:
    return ConversionError(
        f"ONNX Runtime fails at {case.point.name} of profile {case.point.profile} ({shapes_text(case.point)}): "
        f"{onnx_runtime.words(error)}",
        "a graph that runs at every size that the engine is to accept",
        "correct the ranges, or give golden_inputs with values that the model accepts (indices, say)",
    )
