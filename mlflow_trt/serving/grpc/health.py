"""What else answers over gRPC: the standard health service, for Kubernetes, and reflection, for grpcurl."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

SERVICE = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"

_LOOK = 0.25
"""Seconds between two looks of a watch."""

Status = int
Context = Any  # grpc.aio.ServicerContext, whose types are only in a package of stubs


class Health:
    """``grpc.health.v1.Health``.

    Args:
        serving: Answers whether what has a name serves: ``""`` is the server, else a service or a model. None: there is
            no such name.
        ending: Answers whether the server ends: then its watches do too.
        seen: Called with the name of each method that was called, and the status.
        arrived: Awaited before a call is answered.
    """

    def __init__(
        self,
        serving: Callable[[str], bool | None],
        ending: Callable[[], bool],
        seen: Callable[[str, grpc.StatusCode], None],
        arrived: Callable[[], Awaitable[None]],
    ) -> None:
        self._seen = seen
        self._serving = serving
        self._ending = ending
        self._arrived = arrived

    def handlers(self) -> dict[str, Any]:
        """Returns a handler for each method, by its name."""
        request, response = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        coders = {
            "request_deserializer": request.FromString,
            "response_serializer": response.SerializeToString,
        }
        return {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, **coders),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **coders),
        }

    def _status(self, name: str) -> Status | None:
        serving = self._serving(name)
        known = health_pb2.HealthCheckResponse
        return None if serving is None else known.SERVING if serving and not self._ending() else known.NOT_SERVING

    async def _check(self, request: Any, context: Context) -> Any:
        await self._arrived()
        status = self._status(request.service)
        self._seen("Check", grpc.StatusCode.OK if status is not None else grpc.StatusCode.NOT_FOUND)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service or model.")
        return health_pb2.HealthCheckResponse(status=status)

    async def _watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        await self._arrived()
        self._seen("Watch", grpc.StatusCode.OK)
        told: Status | None = None
        while True:
            ending = self._ending()  # looked at first: what it means for the status is told before the watch ends
            status = self._status(request.service)
            if status is None:
                status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            if ending:
                return
            await asyncio.sleep(_LOOK)


def reflection_handlers(
    services: list[str], pool: descriptor_pool.DescriptorPool, check: Callable[[Context], Awaitable[None]]
) -> dict[str, Any]:
    """Returns the handlers of reflection.

    Args:
        services: What it names.
        pool: Holds what describes them.
        check: Ends a call that may not ask.
    """
    servicer = ReflectionServicer(services, pool)

    async def answer(requests: Any, context: Context) -> AsyncIterator[Any]:
        await check(context)
        async for response in servicer.ServerReflectionInfo(requests, context):
            yield response

    handler = grpc.stream_stream_rpc_method_handler(
        answer,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return {"ServerReflectionInfo": handler}


def describe(pool: descriptor_pool.DescriptorPool) -> None:
    """Adds what describes these services to a pool."""
    for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)
