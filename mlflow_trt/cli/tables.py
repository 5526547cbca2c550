"""What a manifest, a compatibility report and a benchmark look like on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..plan import parity as _parity
from ..plan.files import folder_name
from ..plan.manifest import (
    Host,
    LatencyRecord,
    Manifest,
    ParityRecord,
    PlanRecord,
    Profile,
    ShapeRange,
    SourceRecord,
    Tensor,
)

if TYPE_CHECKING:
    from ..plan.compatibility import Report, Verdict

GOOD, BAD, UNSURE = "green", "bold red", "yellow"
STATUS = {"passed": GOOD, "failed": BAD, "measured": "", "not_measured": UNSURE}


def of_manifest(manifest: Manifest) -> Group:
    """Everything a manifest says: interface, plans, source, files."""
    common = next((p.profiles for p in manifest.plans if p.profiles), None)
    parts: list[RenderableType] = []
    if manifest.interface is None:
        parts.append(Text("Inputs and outputs are not known before a GPU loads the engine.\n", style=UNSURE))
    else:
        parts += [
            _tensors("Inputs", manifest.interface.inputs, common),
            _tensors("Outputs", manifest.interface.outputs, None),
        ]
    for number, record in enumerate(manifest.plans, 1):
        parts += [_heading(f"Plan {number} of {len(manifest.plans)}", folder_name(record)), _plan(record, common)]
    if manifest.source is not None:
        parts += [_heading("Source", manifest.source.uri), _source(manifest.source)]
    return Group(*parts, _files(manifest))


def of_report(report: Report) -> Group:
    """Every plan of a model against one host."""
    from ..plan.compatibility import describe

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for record, verdict in report.entries:
        name, style = (
            ("loads", GOOD)
            if record is report.accepted
            else ("would load too", "")
            if verdict.accepted
            else ("does not load", BAD)
        )
        grid.add_row(Text(name, style), Group(folder_name(record), *_why(verdict)))
    return Group(_heading("Host", describe(report.host)), _below(grid))


def of_benchmark(parity: ParityRecord, latency: LatencyRecord) -> Group:
    """What one machine measured."""
    return Group(_parity.table(parity), Text(), of_latency(latency))


def of_latency(latency: LatencyRecord) -> RenderableType:
    """Latency at every profile point."""
    where = f" on {latency.host.gpu}" if latency.host and latency.host.gpu else ""
    if latency.status == "not_measured":
        return Text(f"Latency: not measured ({latency.reason or 'no reason on record'})", style=UNSURE)
    table = Table(title=f"Latency{where}: arrays on the host in and out", title_justify="left")
    for heading in ("profile", "point", "batch", "p50 ms", "p99 ms", "per second", "runs"):
        table.add_column(heading, justify="left" if heading in ("profile", "point") else "right")
    for p in latency.points:
        rate = f"{(p.batch or 1) * 1000 / p.p50_ms:,.0f}" if p.p50_ms > 0 else ""
        batch = "" if p.batch is None else str(p.batch)
        table.add_row(str(p.profile), p.point, batch, f"{p.p50_ms:.3f}", f"{p.p99_ms:.3f}", rate, str(p.runs))
    return table


def size(count: int) -> str:
    """Bytes for readers, in powers of 1000: ``48.2 MB``."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB" if amount < 999.5 else f"{amount:,.0f} GB"


def range_text(shape: ShapeRange) -> str:
    """A shape range as the command line takes it: ``1:8:32, 3, 224, 224``."""
    return ", ".join(
        str(low) if low == high else f"{low}:{opt}:{high}" for low, opt, high in zip(shape.min, shape.opt, shape.max)
    )


def _tensors(title: str, tensors: Iterable[Tensor], profiles: tuple[Profile, ...] | None) -> Group:
    table = headed("name", "dtype", "shape", *(["min:opt:max"] if profiles else []))
    for t in tensors:
        dtype = t.dtype if t.dtype == t.binding_dtype else f"{t.dtype} ({t.binding_dtype} inside)"
        row = [t.name, dtype, ", ".join(map(str, t.shape)) or "scalar"]
        if profiles:
            row.append("\n".join(_profile_lines(profiles, t.name)))
        table.add_row(*row)
    return Group(_heading(title), _below(table))


def _profile_lines(profiles: tuple[Profile, ...], name: str) -> list[str]:
    """One line per profile, or one for all where they agree."""
    lines = [range_text(p[name]) if name in p else "?" for p in profiles]
    return lines[:1] if len(set(lines)) == 1 else lines


def _plan(record: PlanRecord, common: tuple[Profile, ...] | None) -> RenderableType:
    rows: dict[str, RenderableType] = {
        "runtime": f"{record.runtime} {record.release}",
        "loads on": _targets(record),
        "precision": _precision(record),
        "size": size(record.file.size),
    }
    if record.profiles is None:
        rows["profiles"] = "not known before a GPU loads the engine"
    elif record.profiles != common:
        rows["profiles"] = "\n".join(
            "  ".join(f"{name}: {range_text(shape)}" for name, shape in profile.items()) for profile in record.profiles
        )
    if record.settings:
        rows["settings"] = ", ".join(f"{name}={value!r}" for name, value in record.settings.items())
    if record.converter:
        because = f"; {record.converter_reason}" if record.converter_reason else ""
        rows["converter"] = f"{record.converter}{because}"
    rows["built"] = _built(record)
    rows["parity"] = _parity_line(record.parity)
    rows["latency"] = _latency_line(record.latency)
    if record.runtime_cache:
        rows["runtime cache"] = size(record.runtime_cache.size)
    return _rows(rows)


def _targets(record: PlanRecord) -> str:
    where = ", ".join(record.capabilities) if record.capabilities else "not known"
    extra = [
        name
        for name, yes in (
            ("hardware-compatible: also newer", record.hardware_compatible),
            ("version-compatible: also later releases", record.version_compatible),
            ("refittable", record.refittable),
        )
        if yes
    ]
    return "; ".join([f"compute capability {where}", *extra])


def _precision(record: PlanRecord) -> str:
    requested = record.precision.requested or "the model's own"
    census = record.precision.census
    if census is None:
        return f"{requested}; what the engine holds is not known"
    layers = ", ".join(f"{count} {dtype}" for dtype, count in _largest_first(census.layers))
    weights = ", ".join(f"{size(count)} {dtype}" for dtype, count in _largest_first(census.weight_bytes))
    parts = [requested, f"layers: {layers}" if layers else "", f"weights: {weights}" if weights else ""]
    return "; ".join([*filter(None, parts), f"TF32 {'allowed' if census.tf32 else 'off'}"])


def _largest_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])


def _built(record: PlanRecord) -> str:
    if record.built_on is None:
        return "by another program"
    took = f"in {record.build_seconds:.1f} s " if record.build_seconds is not None else ""
    host: Host = record.built_on
    where = f"{host.gpu} ({host.capability})" if host.gpu else "a machine without a GPU"
    parts = [
        f"driver {host.driver}" if host.driver else "",
        f"torch {host.torch}" if host.torch else "",
        f"Torch-TensorRT {host.torch_tensorrt}" if host.torch_tensorrt else "",
    ]
    return ", ".join([f"{took}on {where}", *filter(None, parts)])


def _parity_line(parity: ParityRecord) -> Text:
    text = Text(parity.status.replace("_", " "), STATUS[parity.status])
    outputs = [output for point in parity.points for output in point.outputs]
    if outputs:
        worst = max(o.rel_l2 for o in outputs)
        shown = "not finite" if worst >= _parity.NOT_FINITE else f"{worst:.2g}"
        allowed = f" (allowed {parity.tolerance.rel_l2:.2g})" if parity.tolerance else ""
        text.append(f"; at worst rel L2 {shown}{allowed}, cosine {min(o.cosine for o in outputs):.6f}", style="none")
        agreement = [o.top1 for o in outputs if o.top1 is not None]
        if agreement:
            text.append(f", top-1 {min(agreement):.1%}", style="none")
    elif parity.reason:
        text.append(f": {parity.reason}", style="none")
    return text


def _latency_line(latency: LatencyRecord) -> Text:
    text = Text(latency.status.replace("_", " "), STATUS[latency.status])
    if latency.status == "not_measured":
        return text.append(f": {latency.reason}" if latency.reason else "", style="none")
    points = [p for p in latency.points if p.point == "opt"] or list(latency.points)
    shown = (f"{p.p50_ms:.2f} ms" + (f" at batch {p.batch}" if p.batch is not None else "") for p in points)
    return text.append(f": {', '.join(shown)}", style="none")


def _source(source: SourceRecord) -> RenderableType:
    rows = {
        "flavor": source.flavor,
        "model id": source.model_id or "not logged",
        "files": "\n".join(f"{file.path}  {size(file.size)}, sha256 {file.sha256[:12]}" for file in source.files),
    }
    return _rows(rows)


def _rows(rows: Mapping[str, RenderableType]) -> Padding:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, value in rows.items():
        grid.add_row(name, value)
    return _below(grid)


def _files(manifest: Manifest) -> Group:
    table = headed("size", "sha256", "path")
    for file in manifest.files():
        table.add_row(size(file.size), file.sha256[:12], file.path)
    return Group(_heading("Files"), _below(table))


def _why(verdict: Verdict) -> Iterator[RenderableType]:
    from ..plan.compatibility import Accepted

    if isinstance(verdict, Accepted):
        for note in verdict.notes:
            yield Text(f"note: {note}", style=UNSURE)
        return
    for reason in verdict.reasons:
        yield Text(reason.found)
        grid = Table.grid(padding=(0, 2))
        grid.add_row("expected", reason.expected, style="dim")
        grid.add_row("to do", reason.remedy, style="dim")
        yield Padding(grid, (0, 0, 0, 2), expand=False)


def _heading(title: str, rest: str = "") -> Text:
    text = Text(title, style="bold")
    return text.append(f"  {rest}", style="none") if rest else text


def _below(table: Table) -> Padding:
    """Sets a table off from the heading above it and from what follows."""
    return Padding(table, (0, 0, 1, 2), expand=False)


def headed(*headings: str) -> Table:
    """An empty table with these columns."""
    table = Table(box=SIMPLE_HEAD, header_style="dim", show_edge=False, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading == "size" else "left", overflow="fold")
    return table
