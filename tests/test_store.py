"""Models in real stores: MLflow's server on SQLite with local files, before S3, and beside S3."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from manifests import host, manifest, record
from servers import BUCKET

import mlflow_trt
from mlflow_trt import CompatibilityError, ManifestError, PlanError, StoreError, cache, store

X = np.ones((2, 4), np.float32)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["tracking_server", "tracking_server_s3_proxied", "tracking_server_s3_direct"])
def server(request, monkeypatch):
    server = request.getfixturevalue(request.param)
    server.use(monkeypatch)
    return server


class Objects:
    """The objects of one model in S3, to look at and to damage."""

    def __init__(self, server, model_id):
        import boto3

        self.client = boto3.client(
            "s3",
            endpoint_url=server.uri,
            aws_access_key_id=server.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=server.env["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )
        listed = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        self.keys = [o["Key"] for o in listed if f"/{model_id}/" in o["Key"]]

    def key(self, suffix):
        return next(k for k in self.keys if k.endswith(suffix))

    def read(self, suffix):
        return self.client.get_object(Bucket=BUCKET, Key=self.key(suffix))["Body"].read()

    def write(self, suffix, content):
        self.client.put_object(Bucket=BUCKET, Key=self.key(suffix), Body=content)

    def delete(self, suffix):
        self.client.delete_object(Bucket=BUCKET, Key=self.key(suffix))


def cached_files():
    root = cache.folder() / "models"
    return {p.name for p in root.rglob("*") if p.is_file()} if root.exists() else set()


def test_every_uri_leads_to_the_model(server, classifier_folder, request):
    name = request.node.callspec.id
    info = mlflow_trt.log_model(classifier_folder, "classifier", registered_model_name=name)
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(name, "champion", info.registered_model_version)
    expected = mlflow_trt.inspect(classifier_folder)

    version = info.registered_model_version
    uris = [f"models:/{name}@champion", f"models:/{name}/{version}", info.model_uri, f"runs:/{info.run_id}/classifier"]
    for uri in uris:
        assert mlflow_trt.inspect(uri) == expected, uri
    engine = mlflow_trt.load_model(f"models:/{name}@champion", backend="reference")
    mine = mlflow_trt.load_model(classifier_folder, backend="reference")
    np.testing.assert_array_equal(engine(X)["scores"], mine(X)["scores"])
    pyfunc = mlflow.pyfunc.load_model(f"models:/{name}@champion", model_config={"backend": "reference"})
    np.testing.assert_array_equal(pyfunc.predict({"x": X})["scores"], mine(X)["scores"])


@pytest.fixture
def in_s3(tracking_server_s3_direct, s3_server, monkeypatch, classifier_folder):
    tracking_server_s3_direct.use(monkeypatch)
    info = mlflow_trt.log_model(classifier_folder, "classifier")
    return info.model_uri, Objects(s3_server, info.model_id)


def test_inspect_and_check_fetch_only_the_manifest(in_s3):
    uri, objects = in_s3
    objects.delete("model.plan")
    objects.delete("model.pt2")

    record = mlflow_trt.inspect(uri).plans[0]
    assert mlflow_trt.check(uri, f"{record.runtime}=={record.release},sm_86,os=linux").accepted == record
    assert cached_files() == {"manifest.json"}


def test_a_load_fetches_only_what_it_needs_and_the_next_finds_it(in_s3):
    uri, objects = in_s3

    first = mlflow_trt.load_model(uri, backend="reference")(X)["scores"]
    assert cached_files() == {"manifest.json", "model.pt2"}

    objects.delete("model.pt2")
    again = mlflow_trt.load_model(uri, backend="reference")(X)["scores"]
    np.testing.assert_array_equal(first, again)


def test_a_shared_digest_is_fetched_once_for_the_plan_too(in_s3):
    uri, objects = in_s3
    model = store.open_model(uri)
    plan = model.manifest.plans[0].file

    folder = model.fetch([plan])
    content = (folder / plan.path).read_bytes()
    objects.delete("model.plan")

    assert (store.open_model(uri).fetch([plan]) / plan.path).read_bytes() == content


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "bytes, as the manifest says"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "SHA-256"),
        (lambda content: b"", "has 0 bytes"),
    ],
    ids=["shortened", "altered", "emptied"],
)
@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "proxied"])
def test_a_damaged_object_is_refused_by_digest(
    request, monkeypatch, s3_server, classifier_folder, damage, message, proxied
):
    server = request.getfixturevalue("tracking_server_s3_proxied" if proxied else "tracking_server_s3_direct")
    server.use(monkeypatch)
    info = mlflow_trt.log_model(classifier_folder, "classifier")
    objects = Objects(s3_server, info.model_id)
    model = store.open_model(info.model_uri)
    plan = model.manifest.plans[0].file
    objects.write("model.plan", damage(objects.read("model.plan")))

    with pytest.raises(PlanError, match=message):
        model.fetch([plan])

    assert cached_files() == {"manifest.json"}, "nothing of the damaged object is kept"


def test_a_damaged_cached_file_is_fetched_again(in_s3):
    uri, _ = in_s3
    model = store.open_model(uri)
    plan = model.manifest.plans[0].file
    path = model.fetch([plan]) / plan.path
    content = path.read_bytes()
    path.write_bytes(content[:100])

    assert (model.fetch([plan]) / plan.path).read_bytes() == content


def test_a_model_of_another_flavor_is_named_as_such(tmp_path, monkeypatch, tracking_server):
    tracking_server.use(monkeypatch)

    class Other(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: list[str]):
            return model_input

    info = mlflow.pyfunc.log_model(name="other", python_model=Other())

    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        mlflow_trt.inspect(info.model_uri)


@pytest.mark.parametrize("uri", ["models:/nobody/1", "models:/nobody@champion", "runs:/0123456789abcdef/model"])
def test_an_unknown_model_is_a_store_error(monkeypatch, tracking_server, uri):
    tracking_server.use(monkeypatch)

    with pytest.raises(StoreError, match="can't be read"):
        mlflow_trt.inspect(uri)


def test_a_missing_local_folder_is_a_manifest_error(tmp_path):
    with pytest.raises(ManifestError, match="No such file"):
        mlflow_trt.inspect(tmp_path / "nothing")


def test_a_file_uri_is_a_local_folder(classifier_folder):
    assert mlflow_trt.inspect(classifier_folder.as_uri()) == mlflow_trt.inspect(classifier_folder)


def test_an_unreachable_store_is_a_store_error(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:9")

    with pytest.raises(StoreError, match="can't be read"):
        mlflow_trt.inspect("models:/m/1")


def test_a_cache_that_cannot_be_written_says_so(monkeypatch, tmp_path, in_s3):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "file"))

    with pytest.raises(StoreError, match="MLFLOW_TRT_CACHE"):
        mlflow_trt.inspect(in_s3[0])


def test_an_s3_server_killed_in_the_middle_leaves_no_model(classifier_folder, tmp_path, monkeypatch):
    """The upload starts, the server is gone: the logged model is deleted, nothing is registered."""
    import servers

    with (
        servers.s3_server(tmp_path / "s3") as s3,
        servers.tracking_server(
            tmp_path / "tracking", artifacts=f"s3://{BUCKET}/x", proxied=False, env=s3.env
        ) as tracking,
    ):
        tracking.use(monkeypatch)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

        upload = S3ArtifactRepository._upload_file
        uploaded = []

        def kill_after_first(self, *args, **kwargs):
            if len(uploaded) == 1:
                kill_s3(tmp_path / "s3")
            uploaded.append(args)
            return upload(self, *args, **kwargs)

        monkeypatch.setattr(S3ArtifactRepository, "_upload_file", kill_after_first)

        with pytest.raises(StoreError, match="broke off"):
            mlflow_trt.log_model(classifier_folder, "classifier", registered_model_name="half")

        assert mlflow.search_logged_models(output_format="list") == []
        assert mlflow.search_model_versions() == []


def kill_s3(folder: Path) -> None:
    subprocess.run(["pkill", "-KILL", "-f", f"weed server -dir={folder}/data"], check=True)


def test_a_second_process_finds_the_cache(in_s3):
    uri, objects = in_s3
    mlflow_trt.load_model(uri, backend="reference")
    objects.delete("model.pt2")

    code = f"import mlflow_trt; print(mlflow_trt.load_model({uri!r}, backend='reference').backend)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stdout.strip() == "reference", done.stderr


def test_the_plan_is_selected_once_and_every_refusal_is_told(tmp_path):
    elsewhere, fits = record(capabilities=("12.0",)), record()
    model = store.StoredModel("models:/net/1", manifest(elsewhere, fits), tmp_path)

    selected = model.select(host())

    assert selected.record is fits
    assert selected.report.host == host()
    assert [passed_over for passed_over, _ in selected.report.passed_over()] == [elsewhere]
    with pytest.raises(CompatibilityError, match=r"inspect models:/net/1 --requirements"):
        model.select(host(runtimes={}))


def test_golden_tensors_come_with_their_digests_checked(classifier_folder):
    model = store.open_model(classifier_folder)

    assert {point for _, point, _, _ in model.golden().points()} == {"min", "between", "opt", "max"}
    with (classifier_folder / "golden/outputs.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(PlanError, match=r"outputs\.safetensors"):
        model.golden()


def test_a_model_without_golden_tensors_has_none_to_read(tmp_path):
    assert store.StoredModel("net", manifest(record()), tmp_path).golden() is None
