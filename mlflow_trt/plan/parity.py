"""How far an engine's answers are from the model's own, and whether that is near enough.

Numpy only. It judges; ``measure`` runs the engine. Every figure is finite, so that it can be written as JSON: where one
side is NaN or infinite and the other is not, the error is :data:`NOT_FINITE`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import SettingError
from .manifest import Host, OutputParity, ParityPoint, ParityRecord, PlanRecord, Tolerance

if TYPE_CHECKING:
    from rich.table import Table

NOT_FINITE = sys.float_info.max
"""Stands for an error that no number measures: NaN or infinity on one side only, or shapes that differ."""

# Measured relative errors of whole networks, and what is allowed, about five to ten times as much, for deeper networks
# and inputs that were not tried. Real faults were far outside: a causal mask in place of none gave 7 to 17 %.
_TOLERANCES = {
    "fp32": Tolerance(
        rel_l2=5e-3, cosine=0.9999
    ),  # TF32 all the same on some GPUs: EfficientNet-Lite0 1.9e-3 to 3.7e-3
    "tf32": Tolerance(rel_l2=5e-3, cosine=0.9999),  # 10 bits of mantissa, as fp16: about 1e-3
    "fp16": Tolerance(rel_l2=1e-2, cosine=0.9995),  # ResNet-50: 1.3e-3
    "bf16": Tolerance(rel_l2=5e-2, cosine=0.995),  # 7 bits of mantissa: about 1e-2
}
# The model's own dtypes: they may be float16 inside.
_OWN = _TOLERANCES["fp16"]


def default_tolerance(precision: str | None) -> Tolerance:
    """Returns how far an engine of this precision may be from the model.

    Top-1 agreement is reported and, by default, not judged: an untrained network's or a random input's two best classes
    are often nearer than any rounding.

    Args:
        precision: ``"fp32"``, ``"tf32"``, ``"fp16"``, ``"bf16"``, or None for the model's own dtypes.

    Raises:
        SettingError: The precision is none of these.
    """
    if precision is None:
        return _OWN
    if precision not in _TOLERANCES:
        raise SettingError(
            f"The precision {precision!r} is not known.", f"one of {', '.join(_TOLERANCES)}", "choose one of these"
        )
    return _TOLERANCES[precision]


def tolerance_of(record: PlanRecord) -> Tolerance:
    """Returns how far a plan may be from the model: what it was logged with, or else the default of its precision."""
    return record.parity.tolerance or default_tolerance(record.precision.requested)


def compare(
    reference: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray], tolerance: Tolerance
) -> tuple[OutputParity, ...]:
    """Compares an engine's outputs with the model's own, by PyTorch or ONNX Runtime.

    Floating-point outputs are judged by relative L2 error and cosine. Where the model's whole output is zero, the
    engine's root mean square stands for the relative error. Entries that are NaN, or the same infinity, on both sides
    agree and are left out. Top-1 agreement is the share of rows (last dimension) of an output of rank 2 or 3 whose
    largest entry is at the same place; places that the model holds equal count as the same.

    Integer and boolean outputs are judged by the share of equal entries, reported as ``top1``: at least the tolerance's
    ``top1`` where that is set, else at least 1 − ``rel_l2``.

    Args:
        reference: The model's outputs by name.
        actual: The engine's.
        tolerance: What is near enough.

    Returns:
        One verdict per output of the model's; an output that the engine lacks, or of another shape, has failed.
    """
    return tuple(_compare(name, array, actual.get(name), tolerance) for name, array in reference.items())


def judge(points: Sequence[ParityPoint], tolerance: Tolerance, host: Host | None = None) -> ParityRecord:
    """Returns the verdict on all points: passed if every output is within tolerance and identical rows agree.

    Args:
        points: At least one; without any, the parity is not measured.
        tolerance: What the outputs were compared with.
        host: Where the engine ran.
    """
    if not points:
        return ParityRecord(status="not_measured", reason="there are no golden inputs", tolerance=tolerance)
    passed = all(o.passed for p in points for o in p.outputs) and all(p.identical_rows is not False for p in points)
    return ParityRecord(status="passed" if passed else "failed", tolerance=tolerance, points=tuple(points), host=host)


def table(parity: ParityRecord) -> Table:
    """Returns the figures as a table for a terminal."""
    from rich.table import Table

    made = Table(title=_title(parity), title_justify="left")
    for heading in _HEADINGS:
        made.add_column(heading, justify="left" if heading in ("profile", "point", "output", "verdict") else "right")
    for row in _rows(parity):
        made.add_row(*row, style=None if row[-1] == "passed" else "bold red")
    return made


def text(parity: ParityRecord) -> str:
    """Returns the figures as plain text, for error messages and logs."""
    rows = [_HEADINGS, *_rows(parity)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([_title(parity), *lines])


_HEADINGS = ("profile", "point", "output", "max abs", "rel L2", "cosine", "top-1", "verdict")


def _title(parity: ParityRecord) -> str:
    if parity.status == "not_measured":
        return f"Parity with the model: not measured ({parity.reason or 'no reason on record'})"
    allowed = parity.tolerance
    limits = f"; allowed: rel L2 {allowed.rel_l2:g}, cosine {allowed.cosine:g}" if allowed else ""
    where = f" on {parity.host.gpu}" if parity.host and parity.host.gpu else ""
    return f"Parity with the model{where}: {parity.status}{limits}"


def _rows(parity: ParityRecord) -> Iterable[tuple[str, ...]]:
    for point in parity.points:
        where = (str(point.profile), point.point)
        for o in point.outputs:
            yield (
                *where,
                o.output,
                _figure(o.max_abs),
                _figure(o.rel_l2),
                f"{o.cosine:.6f}",
                "" if o.top1 is None else f"{o.top1:.2%}",
                "passed" if o.passed else "FAILED",
            )
        if point.identical_rows is not None:
            verdict = "passed" if point.identical_rows else "FAILED"
            yield (*where, "identical rows", "", "", "", "", verdict)


def _figure(value: float) -> str:
    return "not finite" if value >= NOT_FINITE else f"{value:.3g}"


def _compare(name: str, reference: np.ndarray, actual: np.ndarray | None, tolerance: Tolerance) -> OutputParity:
    reference = np.asarray(reference)
    if actual is None or np.shape(actual) != reference.shape:
        return OutputParity(output=name, max_abs=NOT_FINITE, rel_l2=NOT_FINITE, cosine=-1.0, passed=False)
    actual = np.asarray(actual)
    if reference.dtype.kind in "biu":
        return _compare_exact(name, reference, actual, tolerance)
    wanted = reference.astype(np.float64).ravel()
    got = actual.astype(np.float64).ravel()
    top1 = _top1(reference, actual)
    with np.errstate(invalid="ignore"):
        agree = (np.isnan(wanted) & np.isnan(got)) | (np.isinf(wanted) & (wanted == got))
    finite = np.isfinite(wanted) & np.isfinite(got)
    if not np.all(agree | finite):
        return OutputParity(output=name, max_abs=NOT_FINITE, rel_l2=NOT_FINITE, cosine=-1.0, top1=top1, passed=False)
    wanted, got = wanted[finite], got[finite]
    with np.errstate(over="ignore"):  # of float64's very largest numbers; the figures then say NOT_FINITE
        difference = got - wanted
        rel_l2 = _relative(difference, wanted)
        cosine = _cosine(wanted, got, rel_l2 <= tolerance.rel_l2)
    return OutputParity(
        output=name,
        max_abs=min(float(np.max(np.abs(difference), initial=0.0)), NOT_FINITE),
        rel_l2=rel_l2,
        cosine=cosine,
        top1=top1,
        passed=rel_l2 <= tolerance.rel_l2 and cosine >= tolerance.cosine and (top1 is None or top1 >= tolerance.top1),
    )


def _compare_exact(name: str, reference: np.ndarray, actual: np.ndarray, tolerance: Tolerance) -> OutputParity:
    share = float(np.mean(reference == actual)) if reference.size else 1.0
    wanted, got = reference.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    difference = got - wanted
    rel_l2 = _relative(difference, wanted)
    return OutputParity(
        output=name,
        max_abs=float(np.max(np.abs(difference), initial=0.0)),
        rel_l2=rel_l2,
        cosine=_cosine(wanted, got, share == 1.0),
        top1=share,
        passed=share >= (tolerance.top1 or 1.0 - tolerance.rel_l2),
    )


def _relative(difference: np.ndarray, wanted: np.ndarray) -> float:
    norm = float(np.linalg.norm(wanted))
    error = float(np.linalg.norm(difference))
    if norm == 0.0:
        return error / max(1.0, float(np.sqrt(difference.size)))
    return error / norm if np.isfinite(error / norm) else NOT_FINITE


def _cosine(wanted: np.ndarray, got: np.ndarray, near: bool) -> float:
    scale = float(np.linalg.norm(wanted)) * float(np.linalg.norm(got))
    if scale == 0.0 or not np.isfinite(scale):
        # A vector of zeros has no direction; the relative error alone can judge it.
        return 1.0 if near else 0.0
    return float(np.clip(np.dot(wanted, got) / scale, -1.0, 1.0))


def _top1(reference: np.ndarray, actual: np.ndarray) -> float | None:
    if reference.ndim not in (2, 3) or reference.shape[-1] < 2 or reference.size == 0:
        return None
    wanted = reference.astype(np.float64).reshape(-1, reference.shape[-1])
    got = actual.astype(np.float64).reshape(wanted.shape)
    usable = ~(np.isnan(wanted).any(axis=1) | np.isnan(got).any(axis=1))
    if not usable.any():
        return None
    wanted, got = wanted[usable], got[usable]
    rows = np.arange(len(wanted))
    return float(np.mean(wanted[rows, got.argmax(axis=1)] == wanted.max(axis=1)))
