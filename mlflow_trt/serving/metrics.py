"""What Prometheus reads: requests, errors, times, batch sizes, what is served, GPU memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from . import processes
from .limits import CUTS

if TYPE_CHECKING:
    from .batching.queue import Answer
    from .served_model import ServedModel

MEDIA = CONTENT_TYPE_LATEST

_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class RequestMetrics(Protocol):
    """What requests are counted by: the server's own :class:`Metrics`, or an HTTP worker's stand-in for them."""

    def request(self, model: str, protocol: str, status: int | str, seconds: float | None) -> None:
        """Counts an inference request that ended."""

    def other(self, route: str, protocol: str, status: int | str) -> None:
        """Counts any other one."""

    def cut(self, limit: str) -> None:
        """Counts a connection that was refused or cut off."""

    def text(self) -> bytes:
        """Returns what Prometheus reads; may wait."""


class Metrics:
    """The figures of one server.

    Args:
        models: What it serves, by name.
        devices: CUDA devices whose memory is shown.
    """

    def __init__(self, models: Mapping[str, ServedModel], devices: Iterable[int] = ()) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "mlflow_trt_requests", "Inference requests by outcome.", ("model", "protocol", "status"), registry=registry
        )
        self._others = Counter(
            "mlflow_trt_other_requests",
            "All other requests: by route, or as unauthorized, unknown_model, unknown_route, refused.",
            ("route", "protocol", "status"),
            registry=registry,
        )
        self.in_flight: dict[str, Callable[[], int]] = {}
        """How many requests are under way, by protocol."""
        self._seconds = Histogram(
            "mlflow_trt_request_seconds",
            "From a request's last byte to its answer.",
            ("model", "protocol"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._queued = Histogram(
            "mlflow_trt_queue_seconds",
            "The longest wait in each batch.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._computed = Histogram(
            "mlflow_trt_compute_seconds",
            "Joining a batch and running the engine.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._rows = Histogram(
            "mlflow_trt_batch_rows", "Rows that ran together.", ("model",), buckets=_ROWS, registry=registry
        )
        cut = Counter(
            "mlflow_trt_cut_connections",
            "HTTP connections that were refused or cut off, by limit.",
            ("limit",),
            registry=registry,
        )
        self._cuts = {limit: cut.labels(limit) for limit in CUTS}
        # A metric's child; looking it up by labels takes longer than counting.
        self._child = cache(lambda metric, *labels: metric.labels(*labels))
        registry.register(_State(models, tuple(devices), self.in_flight))

    def request(self, model: str, protocol: str, status: int | str, seconds: float | None) -> None:
        """Counts an inference request that ended.

        Args:
            model: Its model's name, which must be one that is served: names that clients make up would pile up here.
            protocol: ``"http"``, ``"grpc"``, or ``"mlflow"``: MLflow's ``/invocations``.
            status: HTTP's or gRPC's.
            seconds: How long it took from its last byte; None: that never came.
        """
        self._child(self._requests, model, protocol, status).inc()
        if seconds is not None:
            self._child(self._seconds, model, protocol).observe(seconds)

    def other(self, route: str, protocol: str, status: int | str) -> None:
        """Counts any other request that ended.

        Args:
            route: One of this server's, ``"mlflow"`` (one of MLflow's), ``"unauthorized"``, ``"unknown_model"``,
                ``"unknown_route"`` or ``"refused"`` (before it was read); nothing that clients make up.
            protocol: ``"http"`` or ``"grpc"``.
            status: HTTP's or gRPC's.
        """
        self._child(self._others, route, protocol, status).inc()

    def batch(self, model: str, answer: Answer) -> None:
        """Counts a batch that ran."""
        self._child(self._queued, model).observe(answer.queued)
        self._child(self._computed, model).observe(answer.computed)
        self._child(self._rows, model).observe(answer.rows)

    def cut(self, limit: str) -> None:
        """Counts a connection that was refused or cut off.

        Args:
            limit: One of :data:`~.limits.CUTS`.
        """
        self._cuts[limit].inc()

    def text(self) -> bytes:
        """Returns what Prometheus reads."""
        return generate_latest(self._registry)


class _State(Collector):
    """What is asked only when somebody looks."""

    def __init__(
        self, models: Mapping[str, ServedModel], devices: tuple[int, ...], in_flight: Mapping[str, Callable[[], int]]
    ) -> None:
        self._in_flight = in_flight
        self._models = models
        self._devices = devices

    def collect(self) -> Iterator[Any]:
        """Reads the models' states and the GPUs' memory."""
        served = GaugeMetricFamily("mlflow_trt_model", "The version that answers.", labels=("model", "version", "uri"))
        ready = GaugeMetricFamily("mlflow_trt_model_ready", "Whether a version is loaded.", labels=("model",))
        depth = GaugeMetricFamily("mlflow_trt_queue_depth", "Requests that wait.", labels=("model",))
        swaps = CounterMetricFamily("mlflow_trt_swaps", "Versions that took over.", labels=("model",))
        failed = CounterMetricFamily("mlflow_trt_failed_loads", "Versions that could not.", labels=("model",))
        reachable = GaugeMetricFamily(
            "mlflow_trt_registry_reachable", "Whether the last look at the registry got an answer.", labels=("model",)
        )
        checked = GaugeMetricFamily(
            "mlflow_trt_registry_checked_timestamp_seconds", "When it last got one.", labels=("model",)
        )
        flying = GaugeMetricFamily("mlflow_trt_requests_in_flight", "Requests under way.", labels=("protocol",))
        for protocol, count in self._in_flight.items():
            flying.add_metric((protocol,), count())
        for name, model in self._models.items():
            status = model.status()
            ready.add_metric((name,), float(status["state"] == "ready"))
            swaps.add_metric((name,), status["swaps"])
            failed.add_metric((name,), status["failures"])
            if model.registered_model is not None:
                reachable.add_metric((name,), float(status["registry_failure"] is None and bool(status["checked_at"])))
                if status["checked_at"]:
                    checked.add_metric((name,), status["checked_at"])
            if status["state"] == "ready":
                served.add_metric((name, str(status["version"]), str(status["uri"])), 1.0)
                depth.add_metric((name,), status["waiting"])
        yield from (served, ready, depth, swaps, failed, reachable, checked, flying)
        yield from processes.collect()
        if self._devices:
            yield from _memory(self._devices)


def _memory(devices: tuple[int, ...]) -> Iterator[Any]:
    from ..engine import cuda
    from ..errors import DeviceError

    used = GaugeMetricFamily("mlflow_trt_gpu_memory_used_bytes", "By all processes on the GPU.", labels=("device",))
    total = GaugeMetricFamily("mlflow_trt_gpu_memory_total_bytes", "Of the GPU.", labels=("device",))
    for device in devices:
        try:
            previous = cuda.enter(device)
            try:
                free, size = cuda.memory()
            finally:
                cuda.leave(previous)
        except DeviceError:
            continue
        used.add_metric((str(device),), size - free)
        total.add_metric((str(device),), size)
    yield from (used, total)
