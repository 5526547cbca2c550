"""A KServe InferenceService whose container runs ``mlflow-trt serve``."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from .. import store
from ..errors import SettingError
from . import naming

PORTS = {"http": 8080, "grpc": 8081}
"""Where ``mlflow-trt serve`` listens in the container."""

_PRE_STOP = 5
"""Seconds before SIGTERM, in which Kubernetes takes the pod out of its services."""
_MARGIN = 15
"""Seconds to close connections and to free the GPU."""

_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def export_kserve(
    model_uri: str,
    image: str,
    *,
    name: str | None = None,
    namespace: str | None = None,
    gpus: int = 1,
    cpu: str = "4",
    memory: str = "8Gi",
    replicas: tuple[int, int] = (1, 1),
    protocol: Literal["http", "grpc"] = "http",
    env: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    service_account: str | None = None,
    node_selector: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> str:
    """Writes the manifest of a KServe InferenceService, ``serving.kserve.io/v1beta1``.

    The container is yours: any image in which ``mlflow-trt serve`` runs. It fetches the model itself, follows an alias,
    and says when it is ready, so KServe's storage initializer is not used. It is deployed as a plain Deployment
    (``RawDeployment``), not scaled to zero: an engine takes long to load.

    Args:
        model_uri: What the container serves: any URI that MLflow takes and that the cluster reaches.
        image: The container image.
        name: The service's name, a DNS label. Default: made of the registered model's name.
        namespace: Its namespace. Default: that of whoever applies the manifest.
        gpus: GPUs of each replica; 0: none, for ``--backend reference``.
        cpu: Cores that each replica asks for and may take, as Kubernetes writes them.
        memory: Its memory, likewise.
        replicas: The fewest and the most replicas.
        protocol: Which of the server's two ports the service passes on.
        env: Environment variables, such as ``MLFLOW_TRACKING_URI``.
        secrets: Names of Kubernetes secrets whose entries become environment variables: ``MLFLOW_TRACKING_TOKEN``,
            ``AWS_SECRET_ACCESS_KEY``, ….
        service_account: The service account that the container runs as.
        node_selector: Labels of the nodes that it may run on.
        arguments: More arguments of ``mlflow-trt serve``.

    Returns:
        The manifest, YAML.

    Raises:
        SettingError: A name or number can't be used, or the URI is a folder of this machine.
    """
    if store.local_folder(model_uri) is not None:
        raise SettingError(
            f"{model_uri} is a folder of this machine.",
            "a URI that the cluster reaches: models:/NAME@ALIAS, s3://…",
            "log the model, and give its URI",
        )
    if not image or image != image.strip():
        raise SettingError(
            f"The image is {image!r}.", "the name of a container image", "build one in which mlflow-trt serve runs"
        )
    fewest, most = replicas
    if not 0 < fewest <= most or gpus < 0:
        raise SettingError(
            f"The service has {fewest} to {most} replicas of {gpus} GPUs.",
            "1 or more replicas, not more at the least than at the most, and 0 or more GPUs",
            "give other numbers",
        )
    predictor: dict[str, Any] = {
        "minReplicas": fewest,
        "maxReplicas": most,
        "terminationGracePeriodSeconds": _grace(arguments),
        "containers": [_container(model_uri, image, gpus, cpu, memory, protocol, env or {}, secrets, arguments)],
    }
    if service_account:
        predictor["serviceAccountName"] = service_account
    if node_selector:
        predictor["nodeSelector"] = dict(node_selector)
    if gpus:
        # Nodes with GPUs are commonly tainted so that nothing else runs there.
        predictor["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    metadata: dict[str, Any] = {
        "name": _service_name(name, model_uri),
        **({"namespace": namespace} if namespace else {}),
        "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"},
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {"predictor": predictor},
    }
    return yaml.safe_dump(service, sort_keys=False, allow_unicode=True)


def _container(
    model_uri: str,
    image: str,
    gpus: int,
    cpu: str,
    memory: str,
    protocol: str,
    env: Mapping[str, str],
    secrets: Sequence[str],
    arguments: Sequence[str],
) -> dict[str, Any]:
    resources = {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    serve = ["serve", model_uri, "--host", "0.0.0.0", "--port", str(PORTS["http"])]
    if protocol == "grpc":
        serve += ["--grpc-port", str(PORTS["grpc"])]
    # KServe reads the protocol off the port's name; the probes are HTTP in both cases.
    port = {"name": {"http": "http1", "grpc": "h2c"}[protocol], "containerPort": PORTS[protocol], "protocol": "TCP"}
    container: dict[str, Any] = {
        "name": "kserve-container",
        "image": image,
        "command": ["mlflow-trt"],
        # Kubernetes would take $(…) for a variable.
        "args": [argument.replace("$(", "$$(") for argument in (*serve, *arguments)],
        "ports": [port],
        # Loading and warming up may take minutes on a GPU that the plan's kernels were not compiled for yet.
        "startupProbe": _probe("ready", period=5, failures=240),
        "readinessProbe": _probe("ready", period=5, failures=3),
        "livenessProbe": _probe("live", period=10, failures=3),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_PRE_STOP)]}}},
        "resources": {"requests": dict(resources), "limits": dict(resources)},
    }
    if env:
        container["env"] = [{"name": key, "value": value} for key, value in env.items()]
    if secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in secrets]
    return container


def _probe(what: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": f"/v2/health/{what}", "port": PORTS["http"]},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _grace(arguments: Sequence[str]) -> int:
    """Seconds from the pod's deletion to its end: to hear of it, to drain, and to answer what was accepted."""
    seconds = {"--drain": 5.0, "--timeout": 60.0}  # as mlflow-trt serve has them
    words = [word for argument in arguments for word in argument.split("=", 1)]
    for name, value in itertools.pairwise(words):
        if name in seconds:
            try:
                seconds[name] = float(value)
            except ValueError:
                raise SettingError(f"{name} is {value!r}.", "a number of seconds", "give one") from None
    if not all(0 <= each < 1e6 for each in seconds.values()):
        raise SettingError(f"The arguments say {seconds}.", "seconds from 0 to 1e6", "give other numbers")
    return _PRE_STOP + math.ceil(sum(seconds.values())) + _MARGIN


def _service_name(name: str | None, model_uri: str) -> str:
    service = name or re.sub(r"[^a-z0-9]+", "-", (naming.parse(model_uri).name or "").lower()).strip("-")
    if not _DNS_LABEL.fullmatch(service):
        raise SettingError(
            f"{service!r} can't be a service's name." if service else "The model's URI gives the service no name.",
            "at most 63 lower-case letters, digits and hyphens, a letter first",
            "give one as name=, --name on the command line",
        )
    return service
