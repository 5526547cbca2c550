"""A model of a Triton model repository: ``config.pbtxt``, warm-up files, and one folder a version with the plan.

::

    REPOSITORY/NAME/config.pbtxt
    REPOSITORY/NAME/warmup/0.opt.0
    REPOSITORY/NAME/3/model.plan
"""

from __future__ import annotations

import difflib
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import plan as _plan
from .. import store
from ..errors import CompatibilityError, PlanError, SettingError, StoreError
from ..model_uri import ModelUri
from ..plan.manifest import PlanRecord
from . import naming, pbtxt
from .configuration import Configuration, TritonOptions, configure
from .naming import Named
from .selection import Selection, select

CONFIG = "config.pbtxt"
WARMUP = "warmup"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """What was written for a Triton."""

    path: Path
    """The model's folder in the repository."""
    version: int
    files: tuple[str, ...]
    """The plans in the version's folder."""
    tensorrt: str
    """The release of TensorRT that Triton must link."""
    notes: tuple[str, ...]
    """What the user should know."""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON takes it."""
        return {**vars(self), "path": str(self.path), "files": list(self.files), "notes": list(self.notes)}


def export_triton(
    model_uri: str | Path,
    repository: str | Path,
    *,
    name: str | None = None,
    version: int | None = None,
    tensorrt: str | None = None,
    batching: bool = True,
    preferred_batch_sizes: Sequence[int] = (),
    delay: float = 0.0,
    instances: int = 1,
    gpus: Sequence[int] = (),
    keep_versions: int | None = 1,
) -> Exported:
    """Writes a model version into a model repository of NVIDIA's Triton Inference Server.

    Triton answers with the engine's own outputs, under its bindings' names and dtypes: what the model's structure adds
    to them (inputs handed through, constants) is not among them. Where several plans of the full TensorRT are in the
    version, Triton chooses by the GPU's compute capability.

    Versions of one name share a folder, a configuration and the warm-up files, which stay those of the first: a later
    one is refused if it, or these options, need another configuration. Either everything is written or nothing; a
    version that is there already, with the same plans, stays as it is.

    Args:
        model_uri: A local folder, or any URI that MLflow takes for a model. Only manifest, plans and golden inputs are
            downloaded.
        repository: The model repository's folder; made if it does not exist.
        name: The model's name in Triton. Default: that of the registered model, or of the local folder.
        version: Its number there. Default: the registry's, or 1.
        tensorrt: The release of TensorRT that your Triton links, ``"10.15.1"``: refuses what it can't load.
        batching: Whether Triton joins requests along the batch dimension. Say no where a row's answer depends on the
            rows beside it.
        preferred_batch_sizes: Sizes at which Triton starts a batch before the delay is over.
        delay: How long a request may wait for others, in seconds.
        instances: Engines on each GPU; Triton runs as many batches at once, and each takes its memory.
        gpus: Indices of the GPUs to use. Default: all.
        keep_versions: How many versions Triton serves, the newest first; None: all.

    Raises:
        CompatibilityError: Triton's TensorRT backend can't load the version's plans; the message names the reasons.
        ManifestError: The manifest is missing, malformed, or disagrees with the plans.
        PlanError: A plan was cut short or altered.
        SettingError: A name, number or option can't be used, or the repository holds something else of that name.
        StoreError: The store can't be read, or the repository can't be written.
    """
    options = TritonOptions(batching, tuple(preferred_batch_sizes), delay, instances, tuple(gpus), keep_versions)
    named = naming.parse(model_uri)
    name = _check_name(name or named.name)
    if named.alias:
        holder = _holder(str(named.name), named.alias)
        model_uri, named = str(ModelUri(named.name, version=str(holder))), Named(named.name, holder)
    version = _check_version(version if version is not None else named.version or 1)
    model = store.open_model(model_uri)
    selection = select(model.manifest, tensorrt)
    if model.manifest.interface is None:
        raise CompatibilityError(
            "The version does not say what its inputs and outputs are.",
            "names, dtypes and shapes, which Triton's configuration must hold",
            "log the engine again on a machine with a GPU that loads it, which is then asked for them",
        )
    golden = model.golden()
    folder = model.fetch(record.file for record in selection.files.values())
    configuration = configure(name, model.manifest.interface, selection, golden, options)
    try:
        path = _write(Path(repository), name, version, configuration, selection, folder)
    except OSError as error:
        raise StoreError(
            f"The repository {repository} can't be written: {error.strerror or error}.",
            "a folder of this user's own with room for the plans",
            "free space, or give another folder",
        ) from error
    exported = Exported(path, version, tuple(selection.files), selection.release, _notes(configuration, selection))
    for note in exported.notes:
        _logger.warning("%s", note)
    return exported


def _notes(configuration: Configuration, selection: Selection) -> tuple[str, ...]:
    if not selection.version_compatible:
        return configuration.notes
    flag = (
        "Start tritonserver with --backend-config=tensorrt,version-compatible=true: the plan carries TensorRT code, "
        "which Triton runs only then."
    )
    return (*configuration.notes, flag)


def _holder(name: str, alias: str) -> int:
    """The version that holds an alias, asked once: it may move while the plan is on its way."""
    from mlflow import MlflowClient

    try:
        return int(MlflowClient().get_model_version_by_alias(name, alias).version)
    except Exception as error:
        raise StoreError(
            f"{ModelUri(name, alias=alias)} can't be read: {type(error).__name__}: {str(error)[:500]}",
            "an alias of a registered model in a registry that this machine reaches",
            "check the name, MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI, then try again",
        ) from error


def _check_name(name: str | None) -> str:
    if not name or name.startswith(".") or not name.isprintable() or set(name) & set('/\\:*?"<>|'):
        raise SettingError(
            f"{name!r} can't be a model's name in Triton." if name else "The model's URI gives it no name.",
            "a name that a folder can have",
            "give one as name=, --name on the command line",
        )
    return name


def _check_version(version: int) -> int:
    if not 1 <= version < 2**63:
        raise SettingError(f"The version is {version}.", "1 or more: Triton knows no other", "give another version")
    return version


def _write(
    repository: Path, name: str, version: int, configuration: Configuration, selection: Selection, source: Path
) -> Path:
    """Writes everything beside its place and moves it there in one step."""
    target = repository / name
    text = pbtxt.dumps(configuration.message)
    if target.exists():
        _check_configuration(target, text)
        if (target / str(version)).exists():
            _check_same(target / str(version), selection)
            return target
    repository.mkdir(parents=True, exist_ok=True)
    # Triton loads no folder whose name differs from its configuration's: it can't take this one for a model.
    with tempfile.TemporaryDirectory(dir=repository, prefix=f".{name}-") as scratch:
        made = Path(scratch) / name
        (made / str(version)).mkdir(parents=True)
        for file, record in selection.files.items():
            _copy(source, record, made / str(version) / file)
        if target.exists():
            _move(made / str(version), target / str(version))
            return target
        (made / CONFIG).write_text(text, encoding="ascii")
        if configuration.warmup:
            (made / WARMUP).mkdir()
        for file, content in configuration.warmup.items():
            (made / WARMUP / file).write_bytes(content)
        _move(made, target)
    return target


def _copy(source: Path, record: PlanRecord, target: Path) -> None:
    """Copies a plan; digest and header are checked of what was written."""
    try:
        shutil.copyfile(source / record.file.path, target)
    except FileNotFoundError as error:
        raise PlanError(f"{record.file.path} is missing.", "the plan", "fetch or log the model again") from error
    copied = record.file.model_copy(update={"path": target.name})
    _plan.check_plan(target.parent, record.model_copy(update={"file": copied}))


def _move(made: Path, target: Path) -> None:
    try:
        os.rename(made, target)
    except OSError as error:
        if not target.exists():
            raise
        raise SettingError(
            f"{target} was written by somebody else meanwhile.", "a place of its own", "export again"
        ) from error


def _check_configuration(target: Path, wanted: str) -> None:
    """Raises SettingError where a model's folder has another configuration."""
    try:
        there = (target / CONFIG).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        there = ""
    if there != wanted:
        lines = difflib.unified_diff(there.splitlines(), wanted.splitlines(), CONFIG, "this export", lineterm="", n=0)
        raise SettingError(
            f"{target} is there already, and its configuration is another one:\n" + "\n".join(list(lines)[:20]),
            "the configuration that this version and these options need: all versions in a folder share it",
            "export with the options of the other versions, or under another name, or remove the folder",
        )


def _check_same(folder: Path, selection: Selection) -> None:
    """Raises SettingError where a version's folder holds other plans."""
    try:
        if {entry.name for entry in folder.iterdir()} == set(selection.files):
            for name, record in selection.files.items():
                _plan.verify(folder, record.file.model_copy(update={"path": name}))
            return
    except (PlanError, NotADirectoryError):
        pass
    raise SettingError(
        f"{folder} is there already, and holds something else.",
        "a version that is not there yet, or the same plans",
        "export under another version or name, or remove the folder",
    )
