"""A model that MLflow holds, on this machine for as long as it is converted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from ... import model_uri, store
from ...errors import SettingError, StoreError
from ...model_uri import ModelUri
from ...plan.files import describe
from ...plan.manifest import FILE_NAME, SourceRecord
from . import flavors

if TYPE_CHECKING:
    from mlflow.models import Model

_MLMODEL = "MLmodel"
_REMEDY = "check the URI; give a folder or version that mlflow.onnx or mlflow.pytorch wrote"


@dataclass(frozen=True)
class StoredSource:
    """A model of a flavor that can be converted."""

    uri: str
    """Always means the same: an alias is a version by now."""
    flavor: str
    folder: Path
    """Holds all of its files."""
    mlmodel: Model

    def path(self, key: str) -> Path:
        """The file or folder that MLmodel names under a key of the flavor.

        Raises:
            StoreError: It names none, or one that is not there or outside the model's folder.
        """
        name = self.mlmodel.flavors[self.flavor].get(key)
        root = self.folder.resolve()
        path = (root / str(name)).resolve()
        if name is None or not path.exists() or not path.is_relative_to(root):
            raise StoreError(
                f"MLmodel of {self.uri} says {key}: {name} for the flavor {self.flavor}.",
                "the path of a file or folder of the model",
                "log the model again",
            )
        return path

    def record(self, files: Sequence[Path]) -> SourceRecord:
        """What a manifest says of it.

        Args:
            files: Those that were converted.
        """
        root = self.folder.resolve()
        paths = [path.resolve().relative_to(root).as_posix() for path in files]
        return SourceRecord(
            uri=self.uri,
            flavor=self.flavor,
            files=tuple(describe(root, path) for path in paths),
            model_id=self.mlmodel.model_id,
        )


def is_source(value: object) -> bool:
    """Whether a value names a model that MLflow holds: a URI, or a folder with a model of another flavor than ours."""
    if not isinstance(value, (str, Path)):
        return False
    folder = store.local_folder(value)
    return folder is None or ((folder / _MLMODEL).is_file() and not (folder / FILE_NAME).exists())


@contextmanager
def opened(uri: str | Path) -> Iterator[StoredSource]:
    """Makes a stored model available; what was downloaded for it is removed at the end, after errors too.

    Args:
        uri: A local folder, or any URI that MLflow takes for a model. An alias is resolved once, here.

    Raises:
        SettingError: It holds no model, or one of a flavor that can't be converted.
        StoreError: The store or registry can't be read.
    """
    folder = store.local_folder(uri)
    if folder is not None:
        if not (folder / _MLMODEL).is_file():
            raise SettingError(f"{folder} holds no {_MLMODEL}.", "the folder of a model in MLflow's format", _REMEDY)
        yield _read(folder.resolve().as_uri(), folder)
        return
    repository = store.artifact_repository(str(uri))
    always = pinned(str(uri), repository)
    names = {name.rpartition("/")[2] for name in store.root_names(repository)}  # runs:/… lists them below its path
    if names and _MLMODEL not in names:
        raise SettingError(f"{always} holds no {_MLMODEL}: {', '.join(sorted(names)[:10])}.", "a model", _REMEDY)
    with _scratch() as scratch:
        store.download_file(repository, always, _MLMODEL, scratch)
        _read(always, scratch)  # before anything large is on its way
        yield _read(always, _download(str(uri) if model_uri.parse(str(uri)) is None else always, scratch))


def pinned(uri: str, repository: Any) -> str:
    """A URI that always means what this one means now, without credentials.

    Args:
        uri: Any but a local path.
        repository: MLflow's for it, which has resolved aliases, stages and ``latest``.
    """
    read = model_uri.parse(uri)
    version = getattr(repository, "model_version", None)
    if read is not None:
        named = read.name is not None and version is not None
        return str(ModelUri(read.name, version=str(version), registry=read.registry)) if named else uri
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _download(uri: str, scratch: Path) -> Path:
    """Downloads a model; not by its repository, which for ``runs:/…`` may answer with another folder."""
    from mlflow.artifacts import download_artifacts

    try:
        return Path(download_artifacts(artifact_uri=uri, dst_path=str(scratch)))
    except Exception as error:
        raise store.store_error(uri, error) from error


def _read(uri: str, folder: Path) -> StoredSource:
    from mlflow.models import Model

    try:
        mlmodel = Model.load(str(folder / _MLMODEL))
    except Exception as error:
        raise store.store_error(f"{uri}/{_MLMODEL}", error) from error
    return StoredSource(uri, flavors.choose(mlmodel.flavors, uri), folder, mlmodel)


@contextmanager
def _scratch() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="mlflow-trt-source-")
    except OSError as error:
        raise StoreError(
            f"There is no temporary folder to download to: {error.strerror}.",
            "room for the model on this disk",
            "free space, or set TMPDIR to a folder on another disk",
        ) from error
    with folder as name:
        yield Path(name)
