"""A model that MLflow holds: every URI that names it, what is downloaded, and that nothing of it stays."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
import stored_models
import yaml

from mlflow_trt.errors import SettingError, StoreError
from mlflow_trt.flavor.sources import stored

pytest.importorskip("torch", reason="mlflow.pytorch imports it")


@pytest.fixture(scope="module")
def _saved(tmp_path_factory) -> Path:
    return stored_models.save_pytorch(tmp_path_factory.mktemp("saved") / "net")


@pytest.fixture
def saved(_saved, tmp_path) -> Path:
    return Path(shutil.copytree(_saved, tmp_path / "net"))


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """Where downloads go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def left(temporary: Path) -> list[Path]:
    """Downloads that are there; torch's own cache may be too."""
    return list(temporary.glob("mlflow-trt-*"))


@pytest.fixture
def logged(tmp_path):
    with mlflow.start_run() as run:
        info = stored_models.log_pytorch("net")
    mlflow.MlflowClient().set_registered_model_alias("net", "champion", "1")
    return SimpleNamespace(model_id=info.model_id, run_id=run.info.run_id)


def opened(uri):
    with stored.opened(uri) as source:
        assert (source.folder / "data/model.pt2").is_file()
        return source.uri, source.flavor, source.mlmodel.model_id


def test_every_uri_of_a_logged_model_leads_to_it_and_aliases_are_resolved(logged, temporary):
    of_the_version = ("models:/net/1", "pytorch", logged.model_id)
    for uri in ("models:/net/1", "models:/net@champion", "models:/net/latest"):
        assert opened(uri) == of_the_version
    for uri in (f"models:/{logged.model_id}", f"runs:/{logged.run_id}/net"):
        assert opened(uri) == (uri, "pytorch", logged.model_id)
    assert left(temporary) == []


@pytest.mark.parametrize("form", ["path", "text", "file"])
def test_a_local_folder_is_taken_as_it_is(saved, temporary, form):
    uri = {"path": saved, "text": str(saved), "file": saved.as_uri()}[form]

    with stored.opened(uri) as source:
        assert source.folder == saved
        assert source.uri == saved.as_uri()
        assert source.mlmodel.model_id is None
        assert left(temporary) == []
    assert (saved / "MLmodel").is_file()


def test_what_was_downloaded_goes_after_errors_too(logged, temporary):
    seen = []

    def fail():
        with stored.opened("models:/net/1") as source:
            seen.append(source.folder)
            raise RuntimeError("while it is converted")

    with pytest.raises(RuntimeError, match="while it is converted"):
        fail()
    assert seen[0].is_relative_to(temporary)
    assert left(temporary) == []


def test_another_flavor_is_refused_before_its_files_are_downloaded(logged, temporary, monkeypatch):
    """The registry says models:/net/1, MLmodel says what it is; the rest may be large."""
    (mlmodel,) = Path("mlruns").rglob("MLmodel")
    content = yaml.safe_load(mlmodel.read_text())
    content["flavors"]["sklearn"] = content["flavors"].pop("pytorch")
    mlmodel.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda **_: pytest.fail("all of it is downloaded"))

    with pytest.raises(SettingError, match=r"models:/net/1 has the flavors python_function, sklearn\."):
        opened("models:/net@champion")
    assert left(temporary) == []


def test_what_the_registry_does_not_have_is_a_store_error(logged):
    for uri in ("models:/net@nobody", "models:/net/Staging", "models:/net/99", "models:/other/1", "models:/m-none"):
        with pytest.raises(StoreError, match="can't be read") as caught:
            opened(uri)
        assert uri in caught.value.found
        assert "MLFLOW_TRACKING_URI" in caught.value.remedy
    with pytest.raises(StoreError, match="runs:/none/net can't be read"):
        opened("runs:/none/net")


def test_artifacts_that_are_gone_are_a_store_error(logged):
    shutil.rmtree("mlruns")

    with pytest.raises(StoreError, match="models:/net/1"):
        opened("models:/net/1")


def test_a_folder_of_something_else_is_refused(tmp_path):
    with mlflow.start_run() as run:
        mlflow.log_text("words", "notes/a.txt")

    with pytest.raises(SettingError, match="holds no MLmodel"):
        opened(tmp_path)
    with pytest.raises(SettingError, match=r"holds no MLmodel: a\.txt"):
        opened(f"runs:/{run.info.run_id}/notes")


def test_a_broken_mlmodel_is_a_store_error(saved):
    (saved / "MLmodel").write_text("flavors: [")

    with pytest.raises(StoreError, match="MLmodel can't be read"):
        opened(saved)


@pytest.mark.parametrize("path", ["../other", "nowhere", None])
def test_a_path_that_leaves_the_model_is_refused(saved, path):
    (saved.parent / "other").mkdir()
    content = yaml.safe_load((saved / "MLmodel").read_text())
    content["flavors"]["pytorch"]["model_data"] = path
    (saved / "MLmodel").write_text(yaml.safe_dump(content))

    with stored.opened(saved) as source, pytest.raises(StoreError, match="model_data"):
        source.path("model_data")


def test_a_record_names_what_was_converted(saved):
    with stored.opened(saved) as source:
        record = source.record([source.path("model_data") / "model.pt2"])

    assert (record.uri, record.flavor, record.model_id) == (saved.as_uri(), "pytorch", None)
    (file,) = record.files
    assert file.path == "data/model.pt2"
    assert file.size == (saved / file.path).stat().st_size


def test_what_is_a_source(saved, classifier_folder, tmp_path):
    for value in ("models:/net/1", "models:/net@champion", "runs:/a/b", "s3://bucket/net", saved, str(saved)):
        assert stored.is_source(value), value
    (tmp_path / "net.engine").write_bytes(b"engine")
    for value in (classifier_folder, str(tmp_path / "net.engine"), tmp_path, "module:attribute", b"ftrt", None, 1):
        assert not stored.is_source(value), value


@pytest.mark.parametrize(
    ("uri", "version", "expected"),
    [
        ("models:/net@champion", 3, "models:/net/3"),
        ("models:/net/latest", "12", "models:/net/12"),
        ("models:/net/Staging", 3, "models:/net/3"),
        ("models://profile@databricks/net@champion", 3, "models://profile@databricks/net/3"),
        ("models:/m-1", None, "models:/m-1"),
        ("runs:/r/net", None, "runs:/r/net"),
        ("ftp://user:secret@host/net", None, "ftp://host/net"),
        ("s3://bucket/net", None, "s3://bucket/net"),
    ],
)
def test_a_uri_that_is_recorded_always_means_the_same_and_tells_no_password(uri, version, expected):
    assert stored.pinned(uri, SimpleNamespace(model_version=version)) == expected
