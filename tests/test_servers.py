"""The servers that other tests stand on: they keep artifacts where they should, and refuse what they should."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import servers
from servers import BUCKET, Server


def round_trip(monkeypatch: pytest.MonkeyPatch, server: Server) -> mlflow.ActiveRun:
    server.use(monkeypatch)
    content = os.urandom(100_000)
    Path("sent.bin").write_bytes(content)
    with mlflow.start_run() as run:
        mlflow.log_artifact("sent.bin")
    fetched = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/sent.bin", dst_path="fetched")
    assert Path(fetched).read_bytes() == content
    return run


def objects(s3_server: Server) -> list[str]:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=s3_server.uri,
        aws_access_key_id=s3_server.env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=s3_server.env["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    return [o["Key"] for o in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def test_artifacts_through_the_server_land_in_its_folder(monkeypatch, tracking_server):
    run = round_trip(monkeypatch, tracking_server)

    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert [p for p in tracking_server.files.rglob("sent.bin") if run.info.run_id in str(p)]


def test_proxied_artifacts_land_in_s3_without_the_client_knowing(monkeypatch, tracking_server_s3_proxied, s3_server):
    assert list(tracking_server_s3_proxied.env) == ["MLFLOW_TRACKING_URI"]

    run = round_trip(monkeypatch, tracking_server_s3_proxied)

    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert [k for k in objects(s3_server) if k.startswith("proxied/") and run.info.run_id in k]


def test_direct_artifacts_go_straight_to_s3(monkeypatch, tracking_server_s3_direct, s3_server):
    run = round_trip(monkeypatch, tracking_server_s3_direct)

    assert run.info.artifact_uri.startswith(f"s3://{BUCKET}/direct/")
    assert [k for k in objects(s3_server) if k.startswith("direct/") and run.info.run_id in k]


def test_s3_refuses_wrong_credentials(monkeypatch, tracking_server_s3_direct):
    tracking_server_s3_direct.use(monkeypatch, AWS_SECRET_ACCESS_KEY="not the secret")
    Path("sent.bin").write_bytes(b"x")

    with mlflow.start_run(), pytest.raises(Exception, match=r"SignatureDoesNotMatch|403"):
        mlflow.log_artifact("sent.bin")


def test_a_test_has_a_store_of_its_own(tmp_path):
    with mlflow.start_run() as run:
        mlflow.log_text("here", "note.txt")

    assert mlflow.get_tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    assert str(tmp_path) in run.info.artifact_uri
    assert Path.cwd() == tmp_path


def test_a_server_ends_when_the_test_process_is_killed(tmp_path):
    code = (
        "import servers, pathlib, sys, time\n"
        "with servers._running(lambda ports: ['sleep', '1234.5'], 1, lambda ports: True, pathlib.Path('.'), {}):\n"
        "    print('started', flush=True); time.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(servers.__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env, cwd=tmp_path) as tests:
        assert tests.stdout.readline() == b"started\n"
        deadline = time.monotonic() + 10
        while not (before := sleepers(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert before
        tests.send_signal(signal.SIGKILL)

    deadline = time.monotonic() + 10
    while sleepers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sleepers(tmp_path)


def sleepers(folder: Path) -> list[str]:
    """Processes that sleep in a folder (Linux)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"1234.5" in (process / "cmdline").read_bytes() and (process / "cwd").resolve() == folder.resolve():
                found.append(process.name)
        except OSError:
            continue
    return found
