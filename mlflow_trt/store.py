"""One way to a stored model: a local folder, a run, the registry, S3. The manifest first, then only what is asked for.

MLflow downloads a whole model into a fresh temporary folder at every load and checks no digest. Here the manifest alone
decides what is needed; a fetched file is compared with the manifest's SHA-256 and kept, so that the next load finds it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from . import cache
from .errors import ManifestError, PlanError, StoreError
from .plan import compatibility, manifest
from .plan.compatibility import SelectedPlan
from .plan.files import GoldenTensors, read_golden, verify
from .plan.manifest import File, Host, Manifest


@dataclass(frozen=True)
class StoredModel:
    """A model whose manifest was read."""

    uri: str
    manifest: Manifest
    folder: Path
    """Holds the manifest, and the files that were fetched."""
    repository: Any = None
    """MLflow's artifact repository; None: the folder is the model itself."""

    def select(self, host: Host) -> SelectedPlan:
        """Selects the plan that a host loads, by the manifest alone: the first that is accepted.

        Args:
            host: The machine, from :func:`~mlflow_trt.plan.host.probe` or described by hand.

        Returns:
            The plan, with what was said of every other.

        Raises:
            CompatibilityError: None loads there; the message holds every plan with its reasons.
        """
        return compatibility.select(self.manifest, host, self.uri)

    def files_to_load(self, selected: SelectedPlan | None) -> list[File]:
        """What an engine is loaded from: the plan and its compiled kernels; None: the reference backend's program."""
        if selected is not None:
            record = selected.record
            return [record.file, *([record.runtime_cache] if record.runtime_cache else [])]
        return self.manifest.program.files() if self.manifest.program else []

    def golden(self) -> GoldenTensors | None:
        """Fetches and reads the golden tensors; None: the model was logged without.

        Raises:
            PlanError: A file is missing, cut short, or altered.
            StoreError: The store can't be read.
        """
        golden = self.manifest.golden
        return read_golden(self.fetch([golden.inputs, golden.outputs]), golden) if golden else None

    def fetch(self, files: Iterable[File], *, anew: bool = False) -> Path:
        """Makes files of the model available, from the local cache where it holds them.

        Args:
            files: Entries of the manifest.
            anew: Whether to fetch what the cache holds too, to know what the store holds.

        Returns:
            The folder below which they lie at their manifest paths.

        Raises:
            PlanError: A file is missing, cut short, or altered.
            StoreError: The store can't be read.
        """
        for file in files:
            if self.repository is None:
                continue  # whoever opens a local file checks its digest
            try:
                if not anew:
                    verify(self.folder, file)
                    continue
            except PlanError:
                pass
            self._download(file)
        return self.folder

    def mlmodel(self) -> str | None:
        """Reads MLmodel, MLflow's own description of the model; None: a local folder has none.

        Raises:
            StoreError: The store can't be read.
        """
        if self.repository is None:
            path = self.folder / "MLmodel"
            return path.read_text() if path.is_file() else None
        with _scratch() as scratch:
            return download_file(self.repository, self.uri, "MLmodel", scratch).read_text()

    def _download(self, file: File) -> None:
        with _scratch() as scratch:
            download_file(self.repository, self.uri, file.path, scratch)
            verify(scratch, file)
            target = self.folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / file.path, target)


def open_model(uri: str | Path) -> StoredModel:
    """Reads a model's manifest.

    Args:
        uri: A local folder, or any URI that MLflow takes for a model: ``models:/name/3``, ``models:/name@alias``,
            ``models:/m-…``, ``runs:/…/name``, ``s3://…``. An alias is resolved once, here.

    Returns:
        The model, of which nothing but the manifest was fetched.

    Raises:
        ManifestError: There is no manifest, or it is malformed.
        StoreError: The store or registry can't be read, or knows no such model.
    """
    local = local_folder(uri)
    if local is not None:
        return StoredModel(str(uri), manifest.read(local), local)
    uri = str(uri)
    repository = artifact_repository(uri)
    with _scratch() as scratch:
        # Looked for first: what is not there, servers of MLflow 3.10 call an error of theirs, which is asked for again
        # for minutes.
        names = root_names(repository)
        if "MLmodel" in names and manifest.FILE_NAME not in names:
            raise ManifestError(
                f"{uri} has no {manifest.FILE_NAME}.",
                "a model that mlflow_trt.log_model wrote",
                "log it with mlflow_trt.log_model, or load it with the flavor that wrote it",
            )
        text = download_file(repository, uri, manifest.FILE_NAME, scratch).read_bytes()
        parsed = manifest.parse(text, f"{uri}/{manifest.FILE_NAME}")
        folder = cache.folder() / "models" / hashlib.sha256(text).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / manifest.FILE_NAME, folder / manifest.FILE_NAME)
    return StoredModel(uri, parsed, folder, repository)


def open_cached(uri: str, digest: str) -> StoredModel:
    """Returns a model of which the local cache holds the manifest, without asking any store.

    Args:
        uri: Its URI.
        digest: The manifest's SHA-256. Its files are compared with the manifest's digests when they are fetched.

    Raises:
        PlanError: The manifest was altered.
        StoreError: The cache does not hold it; and ``fetch``, where it does not hold a file.
    """
    folder = cache.folder() / "models" / digest
    try:
        text = (folder / manifest.FILE_NAME).read_bytes()
    except OSError as error:
        raise store_error(f"{folder}/{manifest.FILE_NAME}", error) from error
    if hashlib.sha256(text).hexdigest() != digest:
        raise PlanError(f"{folder}/{manifest.FILE_NAME} was altered.", f"SHA-256 {digest}", f"delete {folder}")
    return StoredModel(uri, manifest.parse(text, f"{folder}/{manifest.FILE_NAME}"), folder, _Away())


class _Away:
    """The repository of a model that is in the cache or nowhere."""

    def download_artifacts(self, path: str, dst_path: str) -> str:
        raise FileNotFoundError(f"the cache does not hold {path}, and the store was not asked")


def local_folder(uri: str | Path) -> Path | None:
    """The folder that a path or ``file:`` URI names; None for every other URI."""
    if isinstance(uri, Path):
        return uri
    parts = urlparse(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in uri or parts.scheme in ("models", "runs", "mlflow-artifacts", "dbfs") else Path(uri)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder on the cache's own file system, so that a finished file moves in one step."""
    parent = cache.folder() / "incoming"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=parent)
    except OSError as error:
        raise StoreError(
            f"The cache folder {parent} can't be written: {error.strerror}.",
            "a folder of this user's own with room for the model",
            f"free space, or set {cache.VARIABLE} to another folder",
        ) from error
    with folder as name:
        yield Path(name)


def artifact_repository(uri: str) -> Any:
    """MLflow's repository of a model's files; an alias is resolved once, here.

    Raises:
        StoreError: There is none, or the registry can't be read.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        return get_artifact_repository(uri)
    except Exception as error:
        raise store_error(uri, error) from error


def download_file(repository: Any, uri: str, path: str, scratch: Path) -> Path:
    """Downloads one file to its place below ``scratch``.

    Raises:
        StoreError: It is not there, or the store can't be read.
    """
    try:
        downloaded = Path(repository.download_artifacts(path, dst_path=str(scratch)))
        target = scratch / path
        if not downloaded.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        if downloaded.resolve() != target.resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(downloaded, target)
        return target
    except Exception as error:
        raise store_error(f"{uri}/{path}", error) from error


def root_names(repository: Any) -> set[str]:
    """What lies at a model's root; nothing where that can't be read."""
    try:
        return {str(entry.path) for entry in repository.list_artifacts(None)}
    except Exception:
        return set()


def store_error(what: str, error: Exception) -> StoreError:
    """What MLflow raised, as an error of this package."""
    reason = str(getattr(error, "message", "") or error).strip().splitlines() or [""]
    return StoreError(
        f"{what} can't be read: {type(error).__name__}: {reason[0][:500]}",
        "a model in a store that this machine reaches",
        "check the URI, MLFLOW_TRACKING_URI, MLFLOW_REGISTRY_URI and the store's credentials, then try again",
    )
