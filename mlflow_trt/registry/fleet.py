"""Whole fleets and whole registries: which machines a version loads on, and what an upgrade would break.

Only manifests are read; no GPU is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

import yaml
from pydantic import ValidationError

from ..errors import ManifestError, SettingError, TrtError
from ..flavor import inspection
from ..model_uri import ModelUri
from ..plan import compatibility
from ..plan.compatibility import Report
from ..plan.files import folder_name
from ..plan.host import parse_host
from ..plan.manifest import Host, Manifest, PlanRecord
from ..plan.targets import architecture
from .ledger import registry_errors, search_versions

Fleet = Union[str, Path, Mapping[str, Union[Host, str]]]


def read(path: str | Path) -> dict[str, Host]:
    """Reads a fleet: a YAML file that maps a machine's name to what it is, as text or by fields.

    ::

        edge-l4: tensorrt_rtx==1.6.1.120,sm_89,os=linux
        training-h100:
          gpu: NVIDIA H100
          capability: "9.0"
          runtimes: {tensorrt_rtx: 1.6.1.120}

    Raises:
        SettingError: The file can't be read, or a machine is not described.
    """
    expected = "a YAML mapping of a name to text (tensorrt_rtx==1.6.1.120,sm_89) or to fields of a host"
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError(f"The fleet {path} can't be read: {error}", expected, "check the file") from error
    if not isinstance(content, dict) or not content:
        raise SettingError(f"The fleet {path} names no machine.", expected, "describe at least one machine")
    return {str(name): _host(str(name), entry) for name, entry in content.items()}


def named(targets: Iterable[Host | str]) -> dict[str, Host]:
    """Machines that were given one by one, by their text."""
    return {
        target if isinstance(target, str) else compatibility.describe(target): parse_host(target)
        if isinstance(target, str)
        else target
        for target in targets
    }


def check_fleet(model_uri: str | Path, fleet: Fleet) -> dict[str, Report]:
    """Tells on which machines of a fleet a version loads, and why it does not on the others.

    Args:
        model_uri: A local folder, or any URI that MLflow takes for a model.
        fleet: A YAML file (see :func:`read`), or a mapping of names to hosts or their text.

    Returns:
        For each machine, by its name, a verdict on every plan; ``report.accepted`` is None where none loads.

    Raises:
        ManifestError: There is no manifest, or it is malformed.
        SettingError: The fleet can't be read.
        StoreError: The store or registry can't be read.
    """
    hosts = _hosts(fleet)
    manifest = inspection.inspect(model_uri)
    return {name: compatibility.check_all(manifest, host) for name, host in hosts.items()}


@dataclass(frozen=True)
class Change:
    """One registered version on one machine, before and after an upgrade."""

    name: str
    version: str
    aliases: tuple[str, ...]
    host: str
    """The machine's name."""
    verdict: Literal["loads", "breaks", "mended", "loads nowhere", "unknown", "other flavor"]
    """``"mended"``: loads only after the upgrade; ``"loads nowhere"``: neither before nor after; ``"unknown"``: its
    manifest can't be read."""
    reason: str
    """The plan that loads after the upgrade, or why none does."""

    @property
    def broken(self) -> bool:
        """Whether the upgrade must wait for this version."""
        return self.verdict in ("breaks", "unknown")


def check_upgrade(
    upgrade: str, *, names: Iterable[str] | None = None, fleet: Fleet | None = None, client: Any = None
) -> list[Change]:
    """Tells what an upgrade of a TensorRT runtime would break, over all registered models.

    Of each model the versions count that an alias names; where there is none, the newest.

    Args:
        upgrade: ``"tensorrt_rtx==1.7"``. A short release stands for all that begin so.
        names: Registered models; None: all.
        fleet: The machines that would be upgraded. None: those that the plans themselves were built for.
        client: An ``MlflowClient``; default: one of the active URIs.

    Returns:
        One entry for each version and machine.

    Raises:
        SettingError: The upgrade or the fleet can't be read.
        StoreError: The registry can't be read.
    """
    runtimes = parse_host(upgrade).runtimes
    if len(runtimes) != 1:
        raise SettingError(
            f"The upgrade {upgrade!r} names no runtime.", "one runtime and its release", "give tensorrt_rtx==1.7"
        )
    [(runtime, release)] = runtimes.items()
    hosts = _hosts(fleet) if fleet is not None else None
    changes: list[Change] = []
    for name, version, aliases in _served(client, names):
        try:
            manifest = inspection.inspect(str(ModelUri(name, version=version)))
        except ManifestError as error:
            other = "has no manifest.json" in error.message
            changes.append(Change(name, version, aliases, "", "other flavor" if other else "unknown", error.found))
            continue
        except TrtError as error:
            changes.append(Change(name, version, aliases, "", "unknown", error.found))
            continue
        for where, host in (hosts or _built_for(manifest, runtime)).items():
            if runtime in host.runtimes:
                verdict, reason = judge_upgrade(manifest, host, runtime, release)
                changes.append(Change(name, version, aliases, where, verdict, reason))
    return changes


def judge_upgrade(
    manifest: Manifest, host: Host, runtime: str, release: str
) -> tuple[Literal["loads", "breaks", "mended", "loads nowhere"], str]:
    """What an upgrade does to one version on one machine.

    Args:
        manifest: The version's.
        host: The machine before the upgrade.
        runtime: What is upgraded.
        release: To which release, in full or its beginning.
    """
    before = compatibility.check_all(manifest, host).accepted is not None
    entries = tuple(
        (record, compatibility.check(record, _upgraded(host, record, runtime, release))) for record in manifest.plans
    )
    after = Report(_upgraded(host, None, runtime, release), entries)
    if after.accepted is not None:
        return ("loads" if before else "mended"), folder_name(after.accepted)
    return ("breaks" if before else "loads nowhere"), why_not(after)


def why_not(report: Report) -> str:
    """Why no plan loads, in one line; of several plans, each with its reason."""
    several = len(report.entries) > 1
    return "; ".join(
        (f"{folder_name(record)}: " if several else "")
        + " ".join(f"{r.found} Expected: {r.expected}." for r in v.reasons)
        for record, v in report.passed_over()
    )


def _upgraded(host: Host, record: PlanRecord | None, runtime: str, release: str) -> Host:
    """The machine after the upgrade; a short release is taken to be the plan's own where that begins so."""
    if record is not None and record.runtime == runtime and f"{record.release}.".startswith(f"{release}."):
        release = record.release
    return host.model_copy(update={"runtimes": {**host.runtimes, runtime: release}})


def _built_for(manifest: Manifest, runtime: str) -> dict[str, Host]:
    """The machines that a version's plans of a runtime were built for."""
    hosts = {}
    for record in manifest.plans:
        if record.runtime != runtime:
            continue
        built_on = record.built_on or Host()
        for capability in record.capabilities or (built_on.capability,):
            if capability is None:
                continue
            host = Host(
                capability=capability,
                os=built_on.os or "linux",
                machine=built_on.machine,
                runtimes={runtime: record.release},
            )
            hosts[f"{runtime}=={record.release},{architecture(capability)}"] = host
    return hosts


def _served(client: Any, names: Iterable[str] | None) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yields (name, version, aliases) of what may be in use."""
    if client is None:
        from mlflow import MlflowClient

        client = MlflowClient()
    for model in _registered(client, names):
        aliases: dict[str, list[str]] = {}
        for alias, version in model.aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        if not aliases:
            newest = max((int(v.version) for v in _versions(client, model.name)), default=None)
            if newest is not None:
                yield model.name, str(newest), ()
        for version, held in sorted(aliases.items(), key=lambda entry: int(entry[0])):
            yield model.name, version, tuple(sorted(held))


def _registered(client: Any, names: Iterable[str] | None) -> Iterator[Any]:
    with registry_errors("The registered models can't be listed"):
        if names is not None:
            for name in names:
                yield client.get_registered_model(name)
            return
        token = None
        while True:
            page = client.search_registered_models(page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def _versions(client: Any, name: str) -> list[Any]:
    with registry_errors(f"The versions of {name} can't be listed"):
        return list(search_versions(client, name))


def _hosts(fleet: Fleet) -> dict[str, Host]:
    if isinstance(fleet, (str, Path)):
        return read(fleet)
    return {name: parse_host(entry) if isinstance(entry, str) else entry for name, entry in fleet.items()}


def _host(name: str, entry: Any) -> Host:
    if isinstance(entry, str):
        return parse_host(entry)
    try:
        if not isinstance(entry, dict):
            raise ValueError(f"it is a {type(entry).__name__}")
        unknown = set(entry) - set(Host.model_fields)
        if unknown:
            raise ValueError(f"there is no field {', '.join(sorted(map(str, unknown)))}")
        fields = {key: _text(value) for key, value in entry.items()}
        if str(fields.get("capability", "")).startswith("sm"):
            fields["capability"] = parse_host(fields["capability"]).capability
        return Host.model_validate(fields)
    except (ValueError, ValidationError) as error:
        raise SettingError(
            f"The machine {name!r} of the fleet is not described: {error}",
            f"fields of a host: {', '.join(Host.model_fields)}",
            "correct the entry",
        ) from error


def _text(value: Any) -> Any:
    """YAML reads 8.9 and 1.7 as numbers."""
    if isinstance(value, dict):
        return {str(key): _text(inner) for key, inner in value.items()}
    return value if value is None else str(value)
