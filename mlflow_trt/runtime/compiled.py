"""TensorRT-RTX's compiled kernels in memory: which contexts compile into which cache object.

Kernels that were specialized for a batch of 1 are taken for larger batches too, of which they compute the first row and
leave the others undefined: when one context is given another shape, and when contexts of different shapes share a cache
object (TensorRT-RTX 1.4.0.76 on an H100, every matrix product, fp32 and fp16; ``benchmarks/specialization.py`` shows
it). So a cache object is for one shape. A cache that was serialized and read again is not affected: what one shape has
compiled reaches the next as bytes.

Bytes have to be loaded, though, which takes most of a second for ResNet-50; an object that is alive holds kernels that
are loaded already. So contexts of one shape share theirs, also those of several engines of one network: a version whose
predecessor is being served is ready at once. TensorRT has a lock of its own around all this: threads gain nothing.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import weakref
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..manifest import Interface, Profile
from .trt import Deserialized, Log

_logger = logging.getLogger(__name__)

compiling = threading.Lock()
"""Held while a context is made and runs first, and while kernels are serialized, in the whole process."""


@dataclass(frozen=True, eq=False)
class RuntimeCache:
    """A cache object; to be kept for as long as the contexts that compile into it."""

    raw: Any
    """TensorRT's own."""
    log: Log
    """Of the engine that made it, which it may outlive."""


_alive: weakref.WeakValueDictionary[Hashable, RuntimeCache] = weakref.WeakValueDictionary()


def network_of(loaded: Deserialized, interface: Interface, profiles: Iterable[Profile], device: int) -> str:
    """Returns what engines of one network on one GPU have in common, whatever their weights."""
    engine = loaded.engine
    layers = engine.create_engine_inspector().get_engine_information(loaded.trt.LayerInformationFormat.JSON)
    parts = (device, loaded.trt.__version__, engine.device_memory_size_v2, layers)
    return hashlib.sha256(repr((parts, interface, tuple(profiles))).encode()).hexdigest()


class Kernels:
    """What has been compiled for one engine. Used under :data:`compiling`.

    Args:
        loaded: The engine.
        network: See :func:`network_of`.
        saved: Serialized caches; the first one that TensorRT accepts is what the first context begins with.
    """

    def __init__(self, loaded: Deserialized, network: str, saved: Sequence[bytes] = ()) -> None:
        self._loaded = loaded
        self._network = network
        self._bytes: bytes | None = None
        self._taken_over: weakref.WeakSet[RuntimeCache] = weakref.WeakSet()
        self._own: weakref.WeakSet[RuntimeCache] = weakref.WeakSet()
        try:
            self._bytes = next((content for content in saved if self._accepts(content)), None)
        except Exception as error:
            _logger.debug("There is no runtime cache: %s", error)

    def attach(self, config: Any, shapes: Hashable) -> RuntimeCache | None:
        """Gives a configuration the cache object for some shapes; None: there is none.

        Args:
            config: TensorRT's runtime configuration, before a context is made with it.
            shapes: All that the context will be bound to.
        """
        place = (self._network, shapes)
        try:
            cache = _alive.get(place)
            if cache is None:
                cache = RuntimeCache(config.create_runtime_cache(), self._loaded.log)
                self._own.add(cache)
                begin = self.serialize()
                if begin is not None and not cache.raw.deserialize(begin):
                    _logger.debug("TensorRT refused a runtime cache: %s", self._loaded.log.text())
            if not config.set_runtime_cache(cache.raw):
                return None
            _alive[place] = cache
            return cache
        except Exception as error:
            _logger.debug("There is no runtime cache: %s", error)
            return None

    def learn(self, cache: RuntimeCache) -> None:
        """Takes note of what a context compiled in its first run, for contexts of other shapes to begin with."""
        if cache not in self._own:
            self._taken_over.add(cache)
            return
        try:
            self._bytes = _serialize(cache.raw) or self._bytes
        except Exception as error:
            _logger.debug("A runtime cache can't be serialized: %s", error)

    def serialize(self) -> bytes | None:
        """Returns all kernels, those of other engines of the network that this one uses too; None: there are none."""
        others = list(self._taken_over)
        if others:
            try:
                together = self._loaded.engine.create_runtime_config().create_runtime_cache()
                for content in (self._bytes, *(_serialize(cache.raw) for cache in others)):
                    if content:
                        together.deserialize(content)
                self._bytes = _serialize(together) or self._bytes
                self._taken_over.clear()
            except Exception as error:
                _logger.debug("Runtime caches can't be put together: %s", error)
        return self._bytes

    def _accepts(self, content: bytes) -> bool:
        cache = self._loaded.engine.create_runtime_config().create_runtime_cache()
        if cache.deserialize(content):
            _logger.debug("Took a runtime cache of %d bytes", len(content))
            return True
        _logger.debug("TensorRT refused a runtime cache: %s", self._loaded.log.text())
        return False


def _serialize(cache: Any) -> bytes:
    return bytes(memoryview(cache.serialize()))
