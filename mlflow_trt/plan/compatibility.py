"""Which plan of a model loads on which machine: a pure function of the manifest and the host.

Expected refusals are values, not exceptions: a version may hold plans for several kinds of machine, and the one that is
passed over for a good reason is not an error. Only when none is left does :func:`select` raise, with the whole trace.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Union

from ..errors import CompatibilityError
from .files import folder_name
from .host import pip_install
from .manifest import Host, Manifest, PlanRecord
from .targets import LOADED_BY, RTX_CAPABILITIES, numbers

_STRICT = (1, 7)
"""TensorRT-RTX from here on refuses a GPU that it does not list: 1.7.1.116 an H200, where 1.4 and 1.6 run."""


_INSTALL = "pip install "


@dataclass(frozen=True)
class Reason:
    """Why a plan does not load here."""

    found: str
    expected: str
    remedy: str


@dataclass(frozen=True)
class Accepted:
    """The plan loads on this host, as far as manifest and host can say."""

    notes: tuple[str, ...] = ()
    """What the reader should know: a fact that was not on record, a combination outside NVIDIA's support matrix."""

    accepted = True

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON takes it."""
        return {"accepted": True, "notes": list(self.notes), "reasons": []}


@dataclass(frozen=True)
class Rejected:
    """The plan does not load on this host."""

    reasons: tuple[Reason, ...]
    """At least one."""

    accepted = False

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON takes it."""
        return {"accepted": False, "notes": [], "reasons": [asdict(r) for r in self.reasons]}


Verdict = Union[Accepted, Rejected]


@dataclass(frozen=True)
class Report:
    """Every plan of a model against one host, in the order in which the loader tries them."""

    host: Host
    entries: tuple[tuple[PlanRecord, Verdict], ...]

    @property
    def accepted(self) -> PlanRecord | None:
        """The plan that loads here: the first that was accepted."""
        return next((record for record, verdict in self.entries if verdict.accepted), None)

    def passed_over(self) -> Iterator[tuple[PlanRecord, Rejected]]:
        """Yields the plans that the loader tries before the accepted one, or all of them, with their reasons."""
        for record, verdict in self.entries:
            if isinstance(verdict, Accepted):
                return
            yield record, verdict

    def explain(self) -> str:
        """Returns the trace as text: this host, each plan, and why it does or does not load."""
        lines = [f"This host: {describe(self.host)}"]
        for record, verdict in self.entries:
            name = folder_name(record)
            if isinstance(verdict, Accepted):
                chosen = ", loads" if record is self.accepted else ", would load too"
                lines.append(f"  {name}{chosen}")
                lines += [f"    note: {note}" for note in verdict.notes]
            else:
                lines.append(f"  {name}, does not load:")
                lines += [f"    {r.found} Expected: {r.expected}. To do: {r.remedy}." for r in verdict.reasons]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {
            "host": self.host.model_dump(),
            "accepted": folder_name(self.accepted) if self.accepted else None,
            "plans": [
                {
                    "plan": folder_name(record),
                    "path": record.file.path,
                    "runtime": record.runtime,
                    "release": record.release,
                    "capabilities": list(record.capabilities) if record.capabilities else None,
                    **verdict.to_dict(),
                }
                for record, verdict in self.entries
            ],
        }


@dataclass(frozen=True)
class SelectedPlan:
    """The plan of a model that a host loads."""

    record: PlanRecord
    report: Report
    """What was said of every plan, and the host."""


def check(record: PlanRecord, host: Host) -> Verdict:
    """Decides whether a plan loads on a host.

    The rules, per runtime (NVIDIA's TensorRT documentation, "Version Compatibility" and "Hardware Compatibility";
    NVIDIA's TensorRT-RTX documentation, "CPU-Only AOT and TensorRT-RTX Engines"):

    * TensorRT-RTX: exactly the release that built it; Linux or Windows; a compute capability that it was built for. A
      GPU whose own capability has no name there (9.0, 10.0) takes plans for 8.0 and newer, up to its own: by NVIDIA's
      text an engine runs on "compute capability 8.0, 8.6, 8.9, 12.0, and later", and plans built for 8.x ran on an
      H100 (9.0) with the same numbers and speed, although TensorRT-RTX's own ``get_engine_validity`` calls them
      invalid there. So that is accepted, with a note.
    * Full TensorRT: the same release, or a later one when built version-compatible; the same compute capability, or
      8.0 and newer when built hardware-compatible; the system and processor architecture that it was built on. A
      version-compatible plan also loads where only NVIDIA's lean runtime is installed, ``tensorrt_lean``.

    What the plan's record does not know is no reason to refuse; it becomes a note.

    Args:
        record: The plan.
        host: The machine, from :func:`~mlflow_trt.plan.host.probe` or described by hand.

    Returns:
        :class:`Accepted` with notes, or :class:`Rejected` with every reason.
    """
    reasons: list[Reason] = []
    notes: list[str] = []
    _check_runtime(record, host, reasons, notes)
    _check_capability(record, host, reasons, notes)
    _check_platform(record, host, reasons, notes)
    return Rejected(tuple(reasons)) if reasons else Accepted(tuple(notes))


def check_all(manifest: Manifest, host: Host) -> Report:
    """Decides for every plan of a model, in the loader's order."""
    return Report(host, tuple((record, check(record, host)) for record in manifest.plans))


def select(manifest: Manifest, host: Host, uri: str | Path | None = None) -> SelectedPlan:
    """Selects the first plan that loads on this host.

    Args:
        manifest: The model's manifest.
        host: The machine.
        uri: Where the model lies, if that is known: what is to be installed is then told as a command.

    Raises:
        CompatibilityError: None does; the message holds every plan with its reasons.
    """
    report = check_all(manifest, host)
    if report.accepted is not None:
        return SelectedPlan(report.accepted, report)
    remedies = list(dict.fromkeys(r.remedy for _, verdict in report.passed_over() for r in verdict.reasons))
    wanted = with_its_release(manifest, host)
    if uri is not None and wanted is not None and host.runtimes.get(wanted.runtime) != wanted.release:
        # The trace names each plan's release; of these, the command takes the one that helps here.
        remedies = [install_command(uri), *(r for r in remedies if not r.startswith(_INSTALL))]
    raise CompatibilityError(
        f"No plan of this model loads on this host.\n{report.explain()}",
        "a host that one of the plans was built for, or a plan built for this host",
        "; or ".join(remedies) + '; or run the logged program on the CPU with backend="reference"'
        if manifest.program
        else "; or ".join(remedies),
    )


def runtime_for(record: PlanRecord, host: Host) -> str | None:
    """Returns the installed runtime that loads a plan: its own, or ``"tensorrt_lean"``; None: none does."""
    installed = _installed(record, host)
    return next((name for name, release in installed.items() if _refusal(record, name, release) is None), None)


def with_its_release(manifest: Manifest, host: Host) -> PlanRecord | None:
    """Returns the first plan that loads on this host once the release that it needs is installed; None: none does.

    Where there is no GPU, as while an image is built, the GPU is taken to be one that the plan was built for.
    """
    for record in manifest.plans:
        capability = host.capability or (record.capabilities or RTX_CAPABILITIES)[0]
        there = host.model_copy(update={"runtimes": {record.runtime: record.release}, "capability": capability})
        if check(record, there).accepted:
            return record
    return None


def requirements(manifest: Manifest, host: Host) -> list[str]:
    """Returns what pip has to install so that a plan of this model loads on this host, ``["tensorrt-rtx==1.6.1.120"]``.

    Raises:
        CompatibilityError: No plan loads here, whatever is installed.
    """
    record = with_its_release(manifest, host) or select(manifest, host).record
    return [requirement(record)]


def requirement(record: PlanRecord) -> str:
    """Returns the TensorRT release that a plan needs, as pip takes it: ``tensorrt-rtx==1.6.1.120``."""
    return f"{record.runtime.replace('_', '-')}=={record.release}"


def install_command(uri: str | Path) -> str:
    """Returns the shell command that installs the release that a model needs on the machine where it is run."""
    return f"{_INSTALL}$(mlflow-trt inspect {shlex.quote(str(uri))} --requirements)"


def describe(host: Host) -> str:
    """Returns a host in one line."""
    gpu = f"{host.gpu or 'GPU'} (compute capability {host.capability})" if host.capability else "no GPU"
    runtimes = ", ".join(f"{name} {release}" for name, release in host.runtimes.items()) or "no TensorRT runtime"
    parts = [gpu, f"driver {host.driver}" if host.driver else "", runtimes, host.os or "", host.machine or ""]
    return ", ".join(p for p in parts if p)


def _installed(record: PlanRecord, host: Host) -> dict[str, str]:
    """The installed runtimes that may load a plan: name → release."""
    return {name: host.runtimes[name] for name in LOADED_BY[record.runtime] if name in host.runtimes}


def _check_runtime(record: PlanRecord, host: Host, reasons: list[Reason], notes: list[str]) -> None:
    installed = _installed(record, host)
    if not installed:
        others = ", ".join(f"{name} {release}" for name, release in host.runtimes.items())
        lean = _is_version_compatible(record)
        reasons.append(
            Reason(
                f"{record.runtime} is not installed" + (f" ({others} is)." if others else "."),
                f"{record.runtime} {record.release}" + (" or later, or tensorrt_lean" if lean else ""),
                " or ".join(
                    pip_install(name, record.release) for name in LOADED_BY[record.runtime][: 2 if lean else 1]
                ),
            )
        )
        return
    name = runtime_for(record, host)
    if name is None:
        reasons.extend(reason for each in installed.items() if (reason := _refusal(record, *each)) is not None)
        return
    if name != record.runtime:
        notes.append(f"loaded by {name} {installed[name]}, NVIDIA's lean runtime")
    here = numbers(installed[name])
    if here != numbers(record.release)[: len(here)]:
        # Both are NVIDIA's words: engines built version-compatible work with later releases ("Version Compatibility"),
        # and: a plan without a lean runtime of its own is executed by the lean runtime of "the same version of
        # TensorRT" (`Runtime.load_runtime`). Torch-TensorRT's plans have none.
        notes.append(
            f"version-compatible, but built by {record.release}: whether {name} {installed[name]} takes it, TensorRT "
            "decides when loading (never run by this project's tests)"
        )


def _refusal(record: PlanRecord, name: str, release: str) -> Reason | None:
    """Why an installed runtime does not load a plan; None: it does."""
    install = pip_install(name, record.release)
    if name == "tensorrt_lean" and not record.version_compatible:
        return Reason(
            f"tensorrt_lean {release} is installed, which loads version-compatible plans alone, and this one was not "
            "recorded as such.",
            f"tensorrt {record.release}, or a plan that was built with version_compatible=True",
            f"{pip_install(record.runtime, record.release)}, or convert the model with version_compatible=True",
        )
    if _is_version_compatible(record):
        needed, here = numbers(record.release), numbers(release)
        if here >= needed[: len(here)]:
            return None
        return Reason(
            f"{name} {release} is installed, and the plan was built by the later {record.release}.",
            f"{record.release} or later",
            install,
        )
    if numbers(release) == numbers(record.release):
        return None
    return Reason(
        f"{name} {release} is installed, and the plan was built by {record.release}.",
        f"exactly {record.release}",
        f"{install}, or build the plan again with {release}",
    )


def _is_version_compatible(record: PlanRecord) -> bool:
    return record.runtime == "tensorrt" and record.version_compatible


def _check_capability(record: PlanRecord, host: Host, reasons: list[Reason], notes: list[str]) -> None:
    here = host.capability
    if here is None:
        reasons.append(
            Reason(
                "No NVIDIA GPU is here, or none was named.",
                "a GPU with its driver",
                "use a machine with an NVIDIA GPU and check that nvidia-smi lists it",
            )
        )
        return
    built_for = record.capabilities
    if built_for is None:
        notes.append("the plan does not say which compute capabilities it was built for; TensorRT decides when loading")
        return
    if here in built_for:
        return
    remedy = f"convert the model for compute capability {here} and log that plan with it"
    if record.runtime == "tensorrt":
        if record.hardware_compatible and numbers(here) >= (8, 0):
            return
        expected = "8.0 or newer" if record.hardware_compatible else _either(built_for)
        reasons.append(Reason(f"The GPU has compute capability {here}.", expected, remedy))
        return
    # A plan that names 7.5 alone is NVIDIA's "device-specific engine for Turing"; it is not portable upwards.
    below = [c for c in built_for if c in RTX_CAPABILITIES and (8, 0) <= numbers(c) <= numbers(here)]
    if here not in RTX_CAPABILITIES and numbers(record.release) >= _STRICT and numbers(here) < (12, 0):
        reasons.append(
            Reason(
                f"The GPU has compute capability {here}, which TensorRT-RTX {record.release} does not run on.",
                f"{_either(RTX_CAPABILITIES)}, or newer than 12.1",
                "use such a GPU, or log a plan of TensorRT-RTX 1.6, which runs on others too",
            )
        )
        return
    if here not in RTX_CAPABILITIES and below:
        notes.append(
            f"TensorRT-RTX can't name compute capability {here}; the plan's code for {max(below, key=numbers)} "
            "runs there, outside NVIDIA's support matrix (seen to work on an H100, 9.0)"
        )
        return
    reasons.append(Reason(f"The GPU has compute capability {here}.", _either(built_for), remedy))


def _check_platform(record: PlanRecord, host: Host, reasons: list[Reason], notes: list[str]) -> None:
    built_on = record.built_on
    if record.runtime == "tensorrt_rtx":
        if host.os not in (None, "linux", "windows"):
            reasons.append(Reason(f"The system is {host.os}.", "linux or windows", "use a machine with one of these"))
        return
    if built_on is None:
        notes.append("the plan does not say on which operating system it was built; TensorRT decides when loading")
        return
    for what, here, there in (
        ("system", host.os, built_on.os),
        ("processor architecture", host.machine, built_on.machine),
    ):
        if here is not None and there is not None and here != there:
            reasons.append(Reason(f"The {what} is {here}.", there, f"build the plan on {here}"))


def _either(names: tuple[str, ...]) -> str:
    return " or ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]
