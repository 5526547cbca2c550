"""Takes the figures: parity at every golden point, latency at every profile point and batch size.

Works with any engine. What the reference backend answers is what engines are compared with: its parity with itself is
no engine's parity, and whoever calls this has to keep that apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ..conversion.progress import Listener, counted
from ..errors import InputError
from ..plan.api import Engine
from ..plan.files import GoldenTensors
from ..plan.host import probe
from ..plan.manifest import (
    Dimension,
    Interface,
    LatencyPoint,
    LatencyRecord,
    ParityPoint,
    ParityRecord,
    Profile,
    ShapeRange,
    Tensor,
    Tolerance,
)
from ..plan.parity import compare, judge
from ..plan.signature import CallSignature, Shapes, batch_size, batch_symbols, symbols_of

WARM_UP = 10
"""Calls before the clock starts: the first compiles kernels, the second records the CUDA graph."""

_LONGEST = 3.0
"""Seconds that one point may take: a slow model is timed over fewer calls."""


def measure_parity(
    engine: Engine, golden: GoldenTensors, tolerance: Tolerance, listener: Listener | None = None
) -> ParityRecord:
    """Compares an engine with the model's recorded answers at every golden point.

    At each point with a batch of at least two there is one more check: the first row in every row of every input, along
    every dimension that is a batch, first or not. All rows of every output along such a dimension must then be equal.
    They may differ by a tenth of the tolerance's relative error, since rows at a tile's edge may be summed in another
    order; faults in handling batches give differences of whole values. Several batches (queries and documents) are
    repeated at once: whatever one of them has to do with another, equal rows then meet equal rows. A batch is not
    judged where its rows may have to do with each other or can't be told: an input or output that has it twice, or has
    a multiple of it.

    Args:
        engine: Any engine.
        golden: Inputs and the model's answers.
        tolerance: What is near enough.
        listener: Is told how far it is.

    Returns:
        The verdict with all figures, and this machine.
    """
    points = []
    for profile, point, inputs, outputs in counted(listener, "parity", sorted(golden.points(), key=_place)):
        answer = engine.predict(inputs)
        points.append(
            ParityPoint(
                profile=profile,
                point=point,
                outputs=compare(outputs, answer, tolerance),
                identical_rows=_identical_rows(engine, inputs, tolerance),
            )
        )
    return judge(points, tolerance, getattr(engine, "host", None) or probe())


def measure_latency(
    engine: Engine,
    golden: GoldenTensors | None = None,
    runs: int = 100,
    *,
    warm_up: int = WARM_UP,
    listener: Listener | None = None,
) -> LatencyRecord:
    """Times native calls, arrays in host memory in and out, at every point.

    Args:
        engine: Any engine.
        golden: Inputs to call it with; None: made up, at min, opt and max of every profile.
        runs: Timed calls at each point, fewer where they would take more than three seconds.
        warm_up: Calls before those.
        listener: Is told how far it is.

    Returns:
        Median and 99th percentile of wall time by a monotonic clock, in ms, and this machine.
    """
    if golden is not None:
        calls = [(profile, point, inputs) for profile, point, inputs, _ in sorted(golden.points(), key=_place)]
    else:
        calls = list(made_up_points(engine.interface, engine.profiles))
    points = []
    for profile, point, inputs in counted(listener, "latency", calls):
        p50, p99, count = _time(_call(engine, inputs), runs, warm_up)
        batch = batch_size(engine.interface, inputs)
        points.append(LatencyPoint(profile=profile, point=point, batch=batch, p50_ms=p50, p99_ms=p99, runs=count))
    if not points:
        return LatencyRecord(status="not_measured", reason="the engine has no profile and no inputs were given")
    return LatencyRecord(status="measured", points=tuple(points), host=getattr(engine, "host", None) or probe())


def latency_by_batch(
    engine: Engine, runs: int = 50, *, warm_up: int = WARM_UP, listener: Listener | None = None
) -> list[dict[str, float]]:
    """Times native calls at batch sizes from the smallest to the largest, doubling.

    All other dynamic sizes are at the opt of the profile that serves the batch size.

    Args:
        engine: Any engine.
        runs: Timed calls at each size, fewer where they would take more than three seconds.
        warm_up: Calls before those.
        listener: Is told how far it is.

    Returns:
        Rows of ``batch``, ``p50_ms``, ``p99_ms`` and ``per_second`` (rows of the batch, at the median); none if the
        model has no batch dimension.
    """
    rows: list[dict[str, float]] = []
    batches = list(_batches(engine.interface, engine.profiles))
    for batch, inputs in counted(listener, "latency by batch", batches):
        p50, p99, _ = _time(_call(engine, inputs), runs, warm_up)
        rows.append({"batch": batch, "p50_ms": p50, "p99_ms": p99, "per_second": batch * 1000.0 / p50})
    return rows


def made_up_points(
    interface: Interface, profiles: tuple[Profile, ...]
) -> Iterator[tuple[int, str, dict[str, np.ndarray]]]:
    """Yields (profile, point, inputs) for min, opt and max of every profile, one point where they are the same."""
    for index, point, shapes in points(interface, profiles):
        yield index, point, made_up(interface, shapes)


def points(interface: Interface, profiles: tuple[Profile, ...]) -> Iterator[tuple[int, str, Shapes]]:
    """Yields (profile, point, shapes) for opt, min and max of every profile, one point where they are the same."""
    for index, profile in enumerate(profiles):
        seen = set()
        for point in ("opt", "min", "max"):
            shapes = tuple(_shape(t, profile.get(t.name), point) for t in interface.inputs)
            if shapes not in seen:
                seen.add(shapes)
                yield index, point, shapes


def made_up(interface: Interface, shapes: Shapes) -> dict[str, np.ndarray]:
    """Returns inputs of these shapes, which are in the interface's order."""
    return {t.name: _made_up(t, shape) for t, shape in zip(interface.inputs, shapes)}


def _place(golden_point: tuple[int, str, object, object]) -> tuple[int, int, str]:
    """Orders points as people read them; a file holds them by the alphabet."""
    profile, point, *_ = golden_point
    return profile, {"min": 0, "between": 1, "opt": 2, "max": 3}.get(point, 4), point


def _identical_rows(engine: Engine, inputs: Mapping[str, np.ndarray], tolerance: Tolerance) -> bool | None:
    axes = _judged_axes(engine.interface)
    if not any(axes.values()):
        return None
    batches = batch_symbols(engine.interface)
    repeated = dict(inputs)
    for tensor in engine.interface.inputs:
        for axis, size in enumerate(tensor.shape):
            if size in batches:
                array = repeated[tensor.name]
                repeated[tensor.name] = np.repeat(array.take([0], axis), array.shape[axis], axis)
    answer = engine.predict(repeated)
    verdict: bool | None = None
    for name, judged in axes.items():
        for axis in judged:
            rows = np.moveaxis(np.asarray(answer[name]), axis, 0)
            if len(rows) > 1:
                agree = all(_same(rows[0], row, tolerance.rel_l2 / 10) for row in rows[1:])
                verdict = agree if verdict is None else verdict and agree
    return verdict


def _judged_axes(interface: Interface) -> dict[str, list[int]]:
    """Of each output the dimensions along which equal inputs must give equal rows."""

    def clear(symbol: Dimension, tensor: Tensor) -> bool:
        return [size for size in tensor.shape if symbol in symbols_of(size)] in ([], [symbol])

    batches = [
        s for s in batch_symbols(interface) if symbols_of(s) == {s} and all(clear(s, t) for t in interface.inputs)
    ]
    return {
        t.name: [axis for axis, size in enumerate(t.shape) if size in batches and clear(size, t)]
        for t in interface.outputs
    }


def _same(first: np.ndarray, row: np.ndarray, allowed: float) -> bool:
    if first.dtype.kind != "f":
        return np.array_equal(first, row)
    strict = Tolerance(rel_l2=allowed, cosine=-1.0)
    return compare({"row": first}, {"row": row}, strict)[0].passed


def _batches(interface: Interface, profiles: tuple[Profile, ...]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    symbols = batch_symbols(interface)
    # Other sizes that are multiples of the batch, say, would have to be worked out.
    if not symbols or any(symbols[0] in symbols_of(n) - {n} for t in interface.inputs for n in t.shape):
        return
    ranges = [r for p in profiles if (r := _range_of(symbols[0], interface, p))]
    if not ranges:
        return
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    sizes = sorted({low, high, *(1 << n for n in range(high.bit_length()) if low <= 1 << n <= high)})
    call_signature = CallSignature(interface, profiles)
    for batch in sizes:
        for profile in profiles:
            # Another batch of the same range grows along: the two may have to be equal for all that anybody knows.
            along = [
                s for s in symbols if _range_of(s, interface, profile) == _range_of(symbols[0], interface, profile)
            ]
            shapes = tuple(
                tuple(
                    batch if want in along else size
                    for want, size in zip(t.shape, _shape(t, profile.get(t.name), "opt"))
                )
                for t in interface.inputs
            )
            try:
                call_signature.profile_of(shapes)
            except InputError:  # a size between two profiles
                continue
            yield batch, made_up(interface, shapes)
            break


def _range_of(symbol: str, interface: Interface, profile: Profile) -> tuple[int, int] | None:
    """The sizes of a batch that a profile takes."""
    ranges = [
        (profile[t.name].min[0], profile[t.name].max[0])
        for t in interface.inputs
        if t.shape and t.shape[0] == symbol and t.name in profile
    ]
    return (max(r[0] for r in ranges), min(r[1] for r in ranges)) if ranges else None


def _shape(tensor: Tensor, bounds: ShapeRange | None, point: str) -> tuple[int, ...]:
    if bounds is not None:
        return tuple(getattr(bounds, point))
    return tuple(size if isinstance(size, int) else 1 for size in tensor.shape)


def _made_up(tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    dtype = np.dtype(tensor.dtype)
    if dtype.kind == "f":
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)
    # Ones are indices, masks and sizes that nearly every model takes.
    return np.ones(shape, dtype)


def _call(engine: Engine, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
    args, kwargs = CallSignature(engine.interface, engine.profiles).arguments(inputs)
    return lambda: engine(*args, **kwargs)


def _time(call: Callable[[], object], runs: int, warm_up: int) -> tuple[float, float, int]:
    """(p50 in ms, p99 in ms, number of timed calls)."""
    begin = time.perf_counter()
    for done in range(max(warm_up, 1)):
        call()
        # At least two: the second call records the CUDA graph.
        if done and time.perf_counter() - begin > _LONGEST:
            break
    times: list[float] = []
    end = time.perf_counter_ns() + _LONGEST * 1e9
    while len(times) < max(runs, 1):
        start = time.perf_counter_ns()
        call()
        now = time.perf_counter_ns()
        times.append(now - start)
        if now > end:
            break
    p50, p99 = np.percentile(times, (50, 99))
    return float(p50) / 1e6, float(p99) / 1e6, len(times)
