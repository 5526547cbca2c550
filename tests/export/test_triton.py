"""The model repository on disk: what is written, what is refused, and that nothing is left half-written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from trt_plans import GOLDEN, engine_bytes, plan, save

import mlflow_trt
from mlflow_trt.cli.export import export_triton as command
from mlflow_trt.errors import CompatibilityError, ManifestError, PlanError, SettingError, StoreError
from mlflow_trt.export import export_triton
from mlflow_trt.plan.manifest import ShapeRange

pb = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
text_format = pytest.importorskip("google.protobuf.text_format")


@pytest.fixture
def repository(tmp_path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def model(tmp_path) -> Path:
    return save(tmp_path / "classifier", plan(golden=GOLDEN))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def config(folder: Path):
    return text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())


def test_a_local_folder(model, repository):
    exported = export_triton(model, repository)

    assert exported.path == repository / "classifier"
    assert (exported.version, exported.files, exported.tensorrt) == (1, ("model.plan",), "10.15.1.29")
    assert exported.notes == ()
    written = tree(repository)
    assert set(written) == {
        "classifier/config.pbtxt",
        "classifier/1/model.plan",
        "classifier/warmup/0.min.0",
        "classifier/warmup/0.opt.0",
        "classifier/warmup/0.max.0",
    }
    assert written["classifier/1/model.plan"] == engine_bytes()
    assert not (exported.path / "1" / "model.plan").is_symlink()
    assert config(exported.path).name == "classifier"
    assert len(config(exported.path).model_warmup) == 3


def test_a_registered_version_has_its_name_and_number_there(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))
    for content in ("one", "two"):
        mlflow_trt.log_model([plan(content, golden=GOLDEN)], "m", registered_model_name="resnet")
    mlflow.MlflowClient().set_registered_model_alias("resnet", "champion", "2")

    assert export_triton("models:/resnet@champion", repository).version == 2
    assert export_triton("models:/resnet/1", repository).version == 1
    assert (repository / "resnet" / "2" / "model.plan").read_bytes() == engine_bytes("two")
    assert (repository / "resnet" / "1" / "model.plan").read_bytes() == engine_bytes("one")
    assert export_triton("models:/resnet@champion", repository, name="other", version=7).path.name == "other"
    assert (repository / "other" / "7" / "model.plan").read_bytes() == engine_bytes("two")


def test_what_triton_has_no_use_for_is_not_downloaded(repository, tmp_path, monkeypatch, tracking_server):
    tracking_server.use(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))
    rtx = plan("rtx", runtime="tensorrt_rtx", release="1.6.1.120", golden=GOLDEN)
    model_id = mlflow_trt.log_model([rtx, plan()], "m").model_id
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    export_triton(f"models:/{model_id}", repository, name="classifier")

    fetched = {p.name if p.suffix != ".plan" else p.parent.name for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    assert fetched == {"manifest.json", "inputs.safetensors", "outputs.safetensors", "tensorrt-10.15.1.29-sm90"}


@pytest.mark.parametrize("uri", ["models:/resnet/latest", "models:/resnet/Production"])
def test_a_word_that_means_another_version_tomorrow_is_refused(uri, repository):
    with pytest.raises(SettingError, match="names no version that stays the same"):
        export_triton(uri, repository)
    assert not repository.exists()


def test_a_uri_without_a_name_needs_one(repository):
    for uri in ("models:/m-0123456789abcdef", "s3://bucket/model", "runs:/0123/m"):
        with pytest.raises(SettingError, match="gives it no name") as caught:
            export_triton(uri, repository)
        assert "--name" in caught.value.remedy


def test_an_alias_that_nobody_holds(repository):
    with pytest.raises(StoreError, match="models:/nothing@champion"):
        export_triton("models:/nothing@champion", repository)
    assert not repository.exists()


@pytest.mark.parametrize("name", [".hidden", "a/b", "..", "a\\b", "a\nb", "a:b", "a*"])
def test_a_name_that_is_no_folder_is_refused(name, model, repository):
    with pytest.raises(SettingError, match="can't be a model's name"):
        export_triton(model, repository, name=name)
    assert not repository.exists()


@pytest.mark.parametrize("version", [0, -1, 2**63])
def test_a_version_that_triton_has_not_is_refused(version, model, repository):
    with pytest.raises(SettingError, match="Triton knows no other"):
        export_triton(model, repository, version=version)


def test_plans_for_several_gpus(repository, tmp_path):
    folder = save(tmp_path / "fleet", plan("a", capabilities=("8.0",)), plan("b", capabilities=("9.0",)))
    exported = export_triton(folder, repository)

    assert dict(config(exported.path).cc_model_filenames) == {"8.0": "sm80.plan", "9.0": "sm90.plan"}
    assert tree(exported.path / "1") == {"sm80.plan": engine_bytes("a"), "sm90.plan": engine_bytes("b")}


def test_a_version_compatible_plan_says_what_triton_needs(repository, tmp_path, caplog):
    folder = save(tmp_path / "vc", plan(version_compatible=True))
    exported = export_triton(folder, repository, tensorrt="10.16.0")

    assert "--backend-config=tensorrt,version-compatible=true" in exported.notes[0]
    assert exported.notes[0] in caplog.text


@pytest.mark.parametrize(
    ("made", "error", "found"),
    [
        (lambda: plan(runtime="tensorrt_rtx", release="1.6.1.120"), CompatibilityError, "plan of tensorrt_rtx"),
        (lambda: plan(interface=None, profiles=None), CompatibilityError, "does not say what its inputs"),
        (lambda: plan(release="10.9.0.34"), CompatibilityError, "built by 10.9.0.34, and Triton links 10.15.1"),
    ],
)
def test_what_triton_can_not_load_is_refused_before_anything_is_written(made, error, found, repository, tmp_path):
    with pytest.raises(error, match=found) as caught:
        export_triton(save(tmp_path / "m", made()), repository, tensorrt="10.15.1")
    assert caught.value.remedy
    assert not repository.exists()


def test_further_versions_join_the_folder(model, repository, tmp_path):
    export_triton(model, repository, name="resnet", version=3)
    before = tree(repository)
    # Other weights and other golden inputs of the same shapes: the warm-up stays that of the first.
    other = save(tmp_path / "other", plan("other", golden={k: v + 1 for k, v in GOLDEN.items()}))
    export_triton(other, repository, name="resnet", version=4)

    assert tree(repository) == {**before, "resnet/4/model.plan": engine_bytes("other")}


def test_the_same_version_again_changes_nothing(model, repository):
    export_triton(model, repository)
    before = {p: p.stat().st_mtime_ns for p in repository.rglob("*")}

    assert export_triton(model, repository).path == repository / "classifier"
    assert {p: p.stat().st_mtime_ns for p in repository.rglob("*")} == before


def test_another_plan_under_the_same_version_is_refused(model, repository, tmp_path):
    export_triton(model, repository)
    before = tree(repository)
    other = save(tmp_path / "other", plan("other", golden=GOLDEN))

    with pytest.raises(SettingError, match="holds something else") as caught:
        export_triton(other, repository, name="classifier")
    assert "another version or name" in caught.value.remedy
    assert tree(repository) == before


def test_an_altered_plan_in_the_repository_is_not_taken_for_the_same(model, repository):
    exported = export_triton(model, repository)
    (exported.path / "1" / "model.plan").write_bytes(b"x" + engine_bytes()[1:])

    with pytest.raises(SettingError, match="holds something else"):
        export_triton(model, repository)


@pytest.mark.parametrize(
    "options",
    [{"delay": 0.001}, {"instances": 2}, {"batching": False}, {"keep_versions": 2}, {"preferred_batch_sizes": (8,)}],
)
def test_a_version_that_needs_another_configuration_is_refused(options, model, repository):
    export_triton(model, repository)
    before = tree(repository)

    with pytest.raises(SettingError, match="configuration is another one") as caught:
        export_triton(model, repository, version=2, **options)
    assert "\n+" in caught.value.found or "\n-" in caught.value.found
    assert tree(repository) == before


def test_other_shapes_are_another_configuration(model, repository, tmp_path):
    export_triton(model, repository)
    larger = ({"x": ShapeRange(min=(1, 4), opt=(2, 4), max=(16, 4))},)

    with pytest.raises(SettingError, match=r"\+max_batch_size: 16"):
        export_triton(save(tmp_path / "l", plan(profiles=larger)), repository, name="classifier", version=2)


@pytest.mark.parametrize("there", ["file", "folder"])
def test_something_else_of_that_name_is_refused(there, model, repository):
    repository.mkdir()
    target = repository / "classifier"
    if there == "file":
        target.write_text("notes")
    else:
        (target / "1").mkdir(parents=True)

    before = sorted(repository.rglob("*"))
    with pytest.raises(SettingError, match="is there already"):
        export_triton(model, repository)
    assert sorted(repository.rglob("*")) == before


def damage(folder: Path, how: str) -> None:
    path = next(folder.rglob("model.plan"))
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(engine_bytes()[:-1])
    else:
        path.write_bytes(engine_bytes()[:-1] + b"!")


@pytest.mark.parametrize("how", ["missing", "cut short", "altered"])
def test_a_damaged_plan_leaves_nothing(how, model, repository):
    damage(model, how)
    with pytest.raises(PlanError):
        export_triton(model, repository)
    assert not any(repository.iterdir())


@pytest.mark.parametrize("how", ["missing", "cut short", "altered"])
def test_a_damaged_second_version_leaves_the_first(how, model, repository):
    export_triton(model, repository)
    before = tree(repository)
    damage(model, how)

    with pytest.raises(PlanError):
        export_triton(model, repository, version=2)
    assert tree(repository) == before
    assert sorted(p.name for p in repository.iterdir()) == ["classifier"]


def test_a_plan_of_another_release_than_the_manifest_says(repository, tmp_path):
    """Its digest is right, so whoever logged it was wrong: Triton would refuse it only when it loads."""
    made = plan()
    record = made.record.model_copy(update={"release": "10.16.0.1"})
    wrong = type(made)(made.serialized, made.manifest.model_copy(update={"plans": (record,)}))

    with pytest.raises(ManifestError, match=r"is a plan of tensorrt 10\.15\.1\.29"):
        export_triton(save(tmp_path / "m", wrong), repository)
    assert not any(repository.iterdir())


def test_a_full_disk_leaves_nothing(model, repository, monkeypatch):
    real = shutil.copyfile

    def fails(source, target):
        real(source, target)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", fails)
    with pytest.raises(StoreError, match="No space left"):
        export_triton(model, repository)
    assert not any(repository.iterdir())


def test_a_repository_that_is_a_file(model, repository):
    repository.write_text("")
    with pytest.raises(StoreError, match="can't be written"):
        export_triton(model, repository)


def test_two_at_once_end_with_one_whole_model(repository, tmp_path):
    models = [save(tmp_path / f"m{i}", plan(str(i))) for i in range(8)]
    barrier = threading.Barrier(len(models))
    ends: list[object] = []

    def export(folder: Path) -> None:
        barrier.wait()
        try:
            ends.append(export_triton(folder, repository, name="classifier"))
        except SettingError as error:
            ends.append(error)

    threads = [threading.Thread(target=export, args=(folder,)) for folder in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ends) == 8
    assert sum(not isinstance(end, Exception) for end in ends) == 1
    assert set(tree(repository)) == {"classifier/config.pbtxt", "classifier/1/model.plan"}
    assert (repository / "classifier/1/model.plan").read_bytes() in {engine_bytes(str(i)) for i in range(8)}
    assert [p.name for p in repository.iterdir()] == ["classifier"]


def test_a_killed_export_leaves_no_model(model, repository):
    """What it leaves has a name that differs from its configuration's, which Triton refuses to load."""
    script = f"""
import os, shutil
from mlflow_trt.export import export_triton
shutil.copyfile = lambda source, target: os._exit(9)
export_triton({str(model)!r}, {str(repository)!r})
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 9
    left = [p.name for p in repository.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".classifier-")
    assert export_triton(model, repository).path.is_dir()


def test_the_reader_of_the_repository_may_be_another_user(model, repository):
    exported = export_triton(model, repository)
    umask = os.umask(0)
    os.umask(umask)

    assert exported.path.stat().st_mode & 0o777 == 0o777 & ~umask
    assert (exported.path / "1" / "model.plan").stat().st_mode & 0o777 == 0o666 & ~umask


def run(*arguments: object):
    return CliRunner(env={"COLUMNS": "300"}).invoke(command, [str(a) for a in arguments], catch_exceptions=False)


def test_a_model_of_this_package_s_own_making_is_refused(classifier_folder, repository):
    """What converts here is TensorRT-RTX."""
    with pytest.raises(CompatibilityError, match="plan of tensorrt_rtx"):
        export_triton(classifier_folder, repository)
