"""TensorRT-RTX's compiled kernels in memory: which contexts compile into which cache object.

Kernels that were specialized for one shape are taken for others too when one context is given another shape, and when
contexts of different shapes share a cache object (TensorRT-RTX 1.4.0.76 and 1.6.1.120; ``benchmarks/specialization.py``
shows it). So a cache object is for one shape, and what one shape has compiled reaches the next as bytes. That makes the
fault rare and not impossible: :mod:`mlflow_trt.runtime.specialization` does the rest.

Bytes have to be loaded, though, at a context's first run; an object that is alive holds kernels that are loaded already
(the same script prints how long either takes). So contexts of one shape share theirs, also those of several engines of
one network: a version is ready sooner while its predecessor is served. TensorRT has a lock of its own around all this:
threads gain nothing.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import weakref
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from ..manifest import Interface, Profile
from .trt import Deserialized, Log

_logger = logging.getLogger(__name__)

compiling = threading.Lock()
"""Held while kernels are looked for, compiled or serialized, in the whole process."""


@dataclass(eq=False)
class RuntimeCache:
    """A cache object; to be kept for as long as the contexts that compile into it."""

    raw: Any
    """TensorRT's own."""
    log: Log
    """Of the engine that made it, which it may outlive."""
    learned: bool = False
    """Whether the kernels of its shape are known: contexts of one shape and network all need the same ones."""


def network_of(loaded: Deserialized, interface: Interface, profiles: Iterable[Profile], device: int) -> str:
    """Returns what engines of one network on one GPU have in common, whatever their weights."""
    engine = loaded.engine
    layers = engine.create_engine_inspector().get_engine_information(loaded.trt.LayerInformationFormat.JSON)
    parts = (device, loaded.trt.__version__, engine.device_memory_size_v2, layers)
    return hashlib.sha256(repr((parts, interface, tuple(profiles))).encode()).hexdigest()


class Kernels:
    """What has been compiled for the engines of one network. Used under :data:`compiling`."""

    def __init__(self) -> None:
        self._bytes: bytes | None = None
        self._accepted: dict[bytes, bool] = {}
        """By digest: whether TensorRT took a serialized cache."""
        self._caches: weakref.WeakValueDictionary[Hashable, RuntimeCache] = weakref.WeakValueDictionary()

    def begin(self, loaded: Deserialized, saved: Iterable[bytes]) -> None:
        """Takes the first of several serialized caches that TensorRT accepts, beside what is there already.

        Args:
            loaded: The engine.
            saved: The caches; those behind the one that is taken are not asked for.
        """
        try:
            for content in saved:
                digest = hashlib.sha256(content).digest()
                if digest not in self._accepted:
                    self._accepted[digest] = self._take(loaded, content)
                if self._accepted[digest]:
                    return
        except Exception as error:
            _logger.debug("There is no runtime cache: %s", error)

    def attach(self, loaded: Deserialized, config: Any, shapes: Hashable) -> RuntimeCache | None:
        """Gives a configuration the cache object for some shapes; None: there is none.

        Args:
            loaded: The engine.
            config: Its runtime configuration, before a context is made with it.
            shapes: All that the context will be bound to.
        """
        try:
            cache = self._caches.get(shapes)
            if cache is None:
                cache = RuntimeCache(config.create_runtime_cache(), loaded.log)
                if self._bytes is not None and not cache.raw.deserialize(self._bytes):
                    _logger.debug("TensorRT refused a runtime cache: %s", loaded.log.text())
            if not config.set_runtime_cache(cache.raw):
                return None
            self._caches[shapes] = cache
            return cache
        except Exception as error:
            _logger.debug("There is no runtime cache: %s", error)
            return None

    def learn(self, cache: RuntimeCache) -> None:
        """Takes note of what a context compiled in its first run, for contexts of other shapes to begin with."""
        if cache.learned:
            return
        try:
            self._bytes = _serialize(cache.raw) or self._bytes
            cache.learned = True
        except Exception as error:
            _logger.debug("A runtime cache can't be serialized: %s", error)

    def serialize(self) -> bytes | None:
        """Returns all that was compiled or taken; None: nothing was."""
        if self._bytes is not None:
            self._accepted[hashlib.sha256(self._bytes).digest()] = True  # whoever reads them again has nothing new
        return self._bytes

    def _take(self, loaded: Deserialized, content: bytes) -> bool:
        cache = loaded.engine.create_runtime_config().create_runtime_cache()
        if not cache.deserialize(content):
            _logger.debug("TensorRT refused a runtime cache: %s", loaded.log.text())
            return False
        _logger.debug("Took a runtime cache of %d bytes", len(content))
        if self._bytes is None:
            self._bytes = content
        elif cache.deserialize(self._bytes):
            self._bytes = _serialize(cache) or self._bytes
        return True


_networks: weakref.WeakValueDictionary[str, Kernels] = weakref.WeakValueDictionary()


def kernels_of(network: str) -> Kernels:
    """Returns the kernels that the engines of a network share for as long as one of them is loaded."""
    return _networks.setdefault(network, Kernels())


def _serialize(cache: Any) -> bytes:
    return bytes(memoryview(cache.serialize()))
