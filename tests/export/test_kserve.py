"""The InferenceService manifest, against what KServe and Kubernetes publish of their types.

KServe's Python SDK carries the types of its OpenAPI document: every field of ours must be one of them, of the right
type. What is Kubernetes' own in them (containers, tolerations) is checked as a Pod by its strict JSON schema, which
kubernetes-validate carries. Neither a cluster nor KServe's admission webhook was there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from benchmarks import isolated_environments
from mlflow_trt.cli.export import export_kserve as command
from mlflow_trt.errors import SettingError
from mlflow_trt.export import export_kserve

URI, IMAGE = "models:/resnet@champion", "registry.example/mlflow-trt:1.0"
KSERVE = ("kserve==0.21.0", "six==1.17.0", "urllib3==2.8.0")
KUBERNETES = "1.34"

# kserve's own __init__ imports its server, and that everything; its types need none of it.
TYPES_AS_JSON = """
import json, sys, types
from importlib.util import find_spec
package = types.ModuleType("kserve")
package.__path__ = list(find_spec("kserve").submodule_search_locations)
sys.modules["kserve"] = package
import kserve.models as models
found = {name: t for name, t in vars(models).items() if hasattr(t, "openapi_types")}
json.dump({n: {t.attribute_map[a]: k for a, k in t.openapi_types.items()} for n, t in found.items()}, sys.stdout)
"""

Types = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def kserve_types() -> Types:
    """Type → the fields it has in JSON and their types, of KServe's published OpenAPI document."""
    try:
        environment = isolated_environments.environment(*KSERVE)
    except RuntimeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    done = subprocess.run([environment / "bin" / "python", "-c", TYPES_AS_JSON], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def faults(value: Any, kind: str, types: Types, where: str = "") -> list[str]:
    """Everything that is not as KServe's types say; what is of Kubernetes' types is passed over."""
    if kind.startswith("list["):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [f for i, v in enumerate(value) for f in faults(v, kind[5:-1], types, f"{where}[{i}]")]
    if kind.startswith("dict("):
        inner = kind[5:-1].split(", ", 1)[1]
        if not isinstance(value, dict):
            return [f"{where} is no dict"]
        return [f for k, v in value.items() for f in faults(v, inner, types, f"{where}.{k}")]
    if kind in ("str", "int", "bool"):
        return [] if type(value).__name__ == kind else [f"{where} is {value!r}, no {kind}"]
    if kind not in types:
        return []
    if not isinstance(value, dict):
        return [f"{where} is no {kind}"]
    unknown = [f"{where}.{k} is no field of {kind}" for k in value if k not in types[kind]]
    known = [(k, v) for k, v in value.items() if k in types[kind]]
    return unknown + [f for k, v in known for f in faults(v, types[kind][k], types, f"{where}.{k}")]


def as_pod(service: dict, types: Types) -> dict:
    """What of a predictor is Kubernetes' own, as the pod that it becomes."""
    predictor = service["spec"]["predictor"]
    own = {"minReplicas", "maxReplicas"}
    assert own <= set(types["V1beta1ComponentExtensionSpec"])
    spec = {key: value for key, value in predictor.items() if key not in own}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": service["metadata"], "spec": spec}


def of(**options) -> dict:
    return yaml.safe_load(export_kserve(URI, IMAGE, **options))


EVERYTHING = {
    "name": "my-resnet",
    "namespace": "models",
    "gpus": 2,
    "cpu": "500m",
    "memory": "16Gi",
    "replicas": (2, 5),
    "protocol": "grpc",
    "env": {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "FLAG": "yes", "NUMBER": "1"},
    "secrets": ("mlflow", "s3"),
    "service_account": "models",
    "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "zone": "1"},
    "arguments": ("--max-queue", "64"),
}
BOTH = pytest.mark.parametrize("options", [{}, EVERYTHING, {"gpus": 0}], ids=["defaults", "everything", "no-gpu"])


@BOTH
def test_every_field_is_one_of_kserve_s(options, kserve_types):
    service = of(**options)

    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert faults(service, "V1beta1InferenceService", kserve_types) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda p: p.update(minReplica=1), "spec.predictor.minReplica is no field of V1beta1PredictorSpec"),
        (lambda p: p.update(minReplicas="1"), "spec.predictor.minReplicas is '1', no int"),
        (lambda p: p.update(nodeSelector={"a": 1}), "spec.predictor.nodeSelector.a is 1, no str"),
        (lambda p: p.update(containers={}), "spec.predictor.containers is no list"),
    ],
)
def test_the_check_finds_what_is_wrong(change, fault, kserve_types):
    service = of()
    change(service["spec"]["predictor"])

    assert faults(service, "V1beta1InferenceService", kserve_types) == [f".{fault}"]


@BOTH
def test_the_pod_is_one_of_kubernetes(options, kserve_types):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    pod = as_pod(of(**options), kserve_types)

    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    pod["spec"]["containers"][0]["ports"][0]["containerPort"] = "http"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_what_the_container_does():
    service = of()
    [container] = service["spec"]["predictor"]["containers"]

    assert container["name"] == "kserve-container"  # by which KServe finds it
    assert container["image"] == IMAGE
    assert container["command"] == ["mlflow-trt"]
    assert container["args"] == ["serve", URI, "--host", "0.0.0.0", "--port", "8080"]
    assert container["ports"] == [{"name": "http1", "containerPort": 8080, "protocol": "TCP"}]
    probes = {k: (p["httpGet"]["path"], p["httpGet"]["port"]) for k, p in container.items() if k.endswith("Probe")}
    assert probes == {
        "startupProbe": ("/v2/health/ready", 8080),
        "readinessProbe": ("/v2/health/ready", 8080),
        "livenessProbe": ("/v2/health/live", 8080),
    }
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "1"}
    assert service["metadata"]["name"] == "resnet"
    assert not {"env", "envFrom"} & set(container)


def test_everything_that_can_be_said():
    service = of(**EVERYTHING)
    predictor = service["spec"]["predictor"]
    [container] = predictor["containers"]

    assert service["metadata"]["name"] == "my-resnet"
    assert service["metadata"]["namespace"] == "models"
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 5)
    assert container["args"][4:] == ["--port", "8080", "--grpc-port", "8081", "--max-queue", "64"]
    assert container["ports"] == [{"name": "h2c", "containerPort": 8081, "protocol": "TCP"}]
    assert container["readinessProbe"]["httpGet"]["port"] == 8080
    assert container["resources"]["requests"] == {"cpu": "500m", "memory": "16Gi", "nvidia.com/gpu": "2"}
    assert {"name": "FLAG", "value": "yes"} in container["env"]
    assert {"name": "NUMBER", "value": "1"} in container["env"]
    assert container["envFrom"] == [{"secretRef": {"name": "mlflow"}}, {"secretRef": {"name": "s3"}}]
    assert predictor["serviceAccountName"] == "models"
    assert predictor["nodeSelector"]["zone"] == "1"


def test_without_gpus_none_is_asked_for():
    predictor = of(gpus=0)["spec"]["predictor"]

    assert "nvidia.com/gpu" not in predictor["containers"][0]["resources"]["limits"]
    assert "tolerations" not in predictor


def test_the_server_takes_the_arguments():
    """The container's arguments are those of the command that it runs."""
    cli_serve = pytest.importorskip("mlflow_trt.cli.serve")
    for options in ({}, EVERYTHING):
        arguments = of(**options)["spec"]["predictor"]["containers"][0]["args"]
        context = cli_serve.serve.make_context("serve", arguments[1:])
        assert context.params["model_uri"] == URI
        assert (context.params["host"], context.params["port"]) == ("0.0.0.0", 8080)
        assert context.params["grpc_port"] == (8081 if options else None)


@pytest.mark.parametrize(
    "arguments", [(), ("--drain", "20"), ("--timeout=120.5", "--max-queue", "64"), ("--drain=0", "--timeout", "1")]
)
def test_the_pod_has_time_to_drain_and_to_answer(arguments):
    cli_serve = pytest.importorskip("mlflow_trt.cli.serve")
    predictor = of(arguments=arguments)["spec"]["predictor"]
    [container] = predictor["containers"]
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    said = cli_serve.serve.make_context("serve", container["args"][1:]).params
    assert predictor["terminationGracePeriodSeconds"] > int(seconds) + said["drain"] + said["timeout"]


@pytest.mark.parametrize("value", ["soon", "nan", "-1", "1e9"])
def test_a_time_that_is_none_is_refused(value):
    with pytest.raises(SettingError):
        of(arguments=("--drain", value))


def test_kubernetes_expands_nothing_in_the_uri():
    service = yaml.safe_load(export_kserve("s3://bucket/$(HOME)", IMAGE, name="m"))

    assert service["spec"]["predictor"]["containers"][0]["args"][1] == "s3://bucket/$$(HOME)"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("models:/resnet@champion", "resnet"),
        ("models:/resnet/3", "resnet"),
        ("models:/My_ResNet.v2@best", "my-resnet-v2"),
        ("models:/prod.eu.resnet/1", "prod-eu-resnet"),
    ],
)
def test_the_name_is_made_of_the_model_s(uri, name):
    assert yaml.safe_load(export_kserve(uri, IMAGE))["metadata"]["name"] == name


@pytest.mark.parametrize(
    ("uri", "options", "found"),
    [
        ("models:/m-0123", {}, "gives the service no name"),
        ("s3://bucket/model", {}, "gives the service no name"),
        ("models:/123/1", {}, "can't be a service's name"),
        ("models:/resnet/latest", {}, "names no version that stays the same"),
        (URI, {"name": "Resnet"}, "can't be a service's name"),
        (URI, {"name": "a" * 64}, "can't be a service's name"),
        (URI, {"name": "a-"}, "can't be a service's name"),
        ("/srv/model", {}, "is a folder of this machine"),
        ("file:///srv/model", {}, "is a folder of this machine"),
        (URI, {"replicas": (3, 2)}, "3 to 2 replicas"),
        (URI, {"replicas": (0, 2)}, "0 to 2 replicas"),
        (URI, {"gpus": -1}, "of -1 GPUs"),
    ],
)
def test_what_can_not_be_is_refused(uri, options, found):
    with pytest.raises(SettingError, match=found) as caught:
        export_kserve(uri, IMAGE, **options)
    assert caught.value.remedy


@pytest.mark.parametrize("image", ["", " a", "a\n"])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(SettingError, match="The image is"):
        export_kserve(URI, image)


def run(*arguments: object):
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


def test_nothing_heavy_is_imported():
    """Exporting needs no torch, and importing this package no export."""
    script = "import sys, mlflow_trt, mlflow_trt.export; print({'torch', 'tritonclient', 'grpc'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)

    assert done.stdout.strip() == "set()", done.stderr
