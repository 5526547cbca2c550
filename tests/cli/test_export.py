"""``mlflow-trt export-triton`` and ``export-kserve``: what they take and print."""

from __future__ import annotations

import json

import pytest
from trt_plans import GOLDEN, plan, save

from mlflow_trt.export import export_kserve

from .commands import run

URI, IMAGE = "models:/resnet@champion", "registry.example/mlflow-trt:1.0"


@pytest.fixture
def repository(tmp_path):
    return tmp_path / "repository"


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "classifier", plan(golden=GOLDEN))


def config(folder):
    pb = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
    text_format = pytest.importorskip("google.protobuf.text_format")
    return text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())


def test_the_manifest_for_kserve(tmp_path):
    options = ("--image", IMAGE, "--env", "A=b=c", "--secret", "mlflow", "--node-selector", "zone=1", "--gpus", 2)
    printed = run("export-kserve", URI, *options, "--replicas", 1, 4, "--argument=--batching", "--protocol", "grpc")
    expected = export_kserve(
        URI,
        IMAGE,
        env={"A": "b=c"},
        secrets=["mlflow"],
        node_selector={"zone": "1"},
        gpus=2,
        replicas=(1, 4),
        arguments=["--batching"],
        protocol="grpc",
    )

    assert printed.exit_code == 0
    assert printed.stdout == expected
    written = run("export-kserve", URI, "--image", IMAGE, "-o", tmp_path / "service.yaml")
    assert (written.exit_code, written.stdout) == (0, "")
    assert (tmp_path / "service.yaml").read_text() == export_kserve(URI, IMAGE)


@pytest.mark.parametrize("pair", ["A", "=b"])
def test_an_environment_variable_without_a_value(pair):
    result = run("export-kserve", URI, "--image", IMAGE, "--env", pair)

    assert result.exit_code == 2
    assert f"--env {pair} is not NAME=VALUE" in result.stderr


def test_a_repository_for_triton(model, repository):
    result = run(
        *("export-triton", model, repository, "--name", "resnet", "--version", 3, "--tensorrt", "10.15.1"),
        *("--delay", 2.5, "--preferred-batch-size", 4, "--preferred-batch-size", 8),
        *("--instances", 2, "--gpu", 0, "--gpu", 1),
        *("--keep-versions", 0),
        columns=300,  # in one line, whatever the folder's path
    )

    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"Written to {repository / 'resnet'}: version 3, model.plan",
        "Needs a Triton that links TensorRT 10.15.1.29",
    ]
    written = config(repository / "resnet")
    assert list(written.dynamic_batching.preferred_batch_size) == [4, 8]
    assert written.dynamic_batching.max_queue_delay_microseconds == 2500
    assert (written.instance_group[0].count, list(written.instance_group[0].gpus)) == (2, [0, 1])
    assert written.version_policy.HasField("all")


def test_a_repository_for_triton_as_json(model, repository):
    result = run("export-triton", model, repository, "--no-batching", "--json", columns=300)

    assert json.loads(result.stdout) == {
        "path": str(repository / "classifier"),
        "version": 1,
        "files": ["model.plan"],
        "tensorrt": "10.15.1.29",
        "notes": [],
    }
    assert not config(repository / "classifier").HasField("dynamic_batching")
