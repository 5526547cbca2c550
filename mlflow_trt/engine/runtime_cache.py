"""TensorRT-RTX's compiled kernels in memory: which contexts compile into which cache object.

Kernels that were specialized for one shape are taken for others too when one context is given another shape, and when
contexts of different shapes share a cache object (TensorRT-RTX 1.4.0.76 and 1.6.1.120; ``benchmarks/specialization.py``
shows it). So a cache object is for one shape, and what one shape has compiled reaches the next as bytes. That makes the
fault rare and not impossible: :mod:`mlflow_trt.engine.specialization` does the rest.

Kernels for all shapes, by which specialized ones are judged, are kept apart from these: a context that is to have none
of them must not find any among its bytes.

Bytes have to be loaded, though, at a context's first run; an object that is alive holds kernels that are loaded
already. So contexts of one shape share theirs, also those of several engines of one network: a version is ready sooner
while its predecessor is served. Not with releases before 1.6: there a context that joins an object in use runs with the
slower kernels for all shapes (1.4.0.76; "joined" in what the same script prints). TensorRT has a lock of its own around
all this: threads gain nothing.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import weakref
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..plan.manifest import Interface, Profile
from ..plan.targets import numbers
from .trt import Deserialized, Log

_logger = logging.getLogger(__name__)

_MAGIC = b"mlflow-trt runtime caches 1\n"

compiling = threading.Lock()
"""Held while kernels are looked for, compiled or serialized, in the whole process."""


@dataclass(eq=False)
class RuntimeCache:
    """A cache object; to be kept for as long as the contexts that compile into it."""

    raw: Any
    """TensorRT's own."""
    log: Log
    """Of the engine that made it, which it may outlive."""
    specialized: bool
    """Whether kernels for one shape are compiled into it."""
    learned: bool = False
    """Whether the kernels of its shape are known: contexts of one shape and network all need the same ones."""


def network_of(loaded: Deserialized, interface: Interface, profiles: Iterable[Profile], device: int) -> str:
    """Returns what engines of one network on one GPU have in common, whatever their weights."""
    engine = loaded.engine
    layers = engine.create_engine_inspector().get_engine_information(loaded.trt.LayerInformationFormat.JSON)
    parts = (device, loaded.trt.__version__, engine.device_memory_size_v2, layers)
    return hashlib.sha256(repr((parts, interface, tuple(profiles))).encode()).hexdigest()


def shares(release: str) -> bool:
    """Whether contexts of one shape lose nothing by compiling into one cache object, with this TensorRT-RTX."""
    return numbers(release) >= (1, 6)


class Kernels:
    """What has been compiled for the engines of one network. Used under :data:`compiling`.

    Args:
        shared: Whether contexts of one shape share their cache object.
    """

    def __init__(self, shared: bool = True) -> None:
        self._shared = shared
        self._bytes: dict[bool, bytes] = {}
        """By whether they are specialized."""
        self._accepted: dict[tuple[bool, bytes], bool] = {}
        """By kind and digest: whether TensorRT took a serialized cache."""
        self._caches: weakref.WeakValueDictionary[Hashable, RuntimeCache] = weakref.WeakValueDictionary()

    def begin(self, loaded: Deserialized, saved: Iterable[bytes]) -> None:
        """Takes the first of several contents of :meth:`serialize` that TensorRT accepts, beside what is there already.

        Args:
            loaded: The engine.
            saved: The contents; those behind the one that is taken are not asked for.
        """
        try:
            for content in saved:
                taken = [self._begin(loaded, part, specialized) for specialized, part in unpacked(content).items()]
                if all(taken):
                    return
        except Exception as error:
            _logger.debug("There is no runtime cache: %s", error)

    def attach(self, loaded: Deserialized, config: Any, shapes: Hashable, specialized: bool) -> RuntimeCache | None:
        """Gives a configuration the cache object for some shapes; None: there is none.

        Args:
            loaded: The engine.
            config: Its runtime configuration, before a context is made with it.
            shapes: All that the context will be bound to, and whether it compiles specialized kernels.
            specialized: That alone.
        """
        try:
            cache = self._caches.get(shapes)
            if cache is None:
                cache = RuntimeCache(config.create_runtime_cache(), loaded.log, specialized)
                begin = self._bytes.get(specialized)
                if begin is not None and not cache.raw.deserialize(begin):
                    _logger.debug("TensorRT refused a runtime cache: %s", loaded.log.text())
            if not config.set_runtime_cache(cache.raw):
                return None
            if self._shared:
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
            if content := _serialize(cache.raw):
                self._bytes[cache.specialized] = content
            cache.learned = True
        except Exception as error:
            _logger.debug("A runtime cache can't be serialized: %s", error)

    def serialize(self) -> bytes | None:
        """Returns all that was compiled or taken; None: nothing was."""
        for specialized, content in self._bytes.items():
            # Whoever reads them again has nothing new.
            self._accepted[specialized, hashlib.sha256(content).digest()] = True
        return packed(self._bytes) if self._bytes else None

    def _begin(self, loaded: Deserialized, content: bytes, specialized: bool) -> bool:
        key = specialized, hashlib.sha256(content).digest()
        if key not in self._accepted:
            self._accepted[key] = self._take(loaded, content, specialized)
        return self._accepted[key]

    def _take(self, loaded: Deserialized, content: bytes, specialized: bool) -> bool:
        cache = loaded.engine.create_runtime_config().create_runtime_cache()
        if not cache.deserialize(content):
            _logger.debug("TensorRT refused a runtime cache: %s", loaded.log.text())
            return False
        _logger.debug("Took a runtime cache of %d bytes", len(content))
        there = self._bytes.get(specialized)
        if there is None:
            self._bytes[specialized] = content
        elif cache.deserialize(there):
            self._bytes[specialized] = _serialize(cache) or there
        return True


def packed(caches: Mapping[bool, bytes]) -> bytes:
    """Serialized caches, by whether their kernels are specialized, as one file holds them."""
    plain, specialized = caches.get(False, b""), caches.get(True, b"")
    return _MAGIC + len(plain).to_bytes(8, "little") + plain + specialized


def unpacked(content: bytes) -> dict[bool, bytes]:
    """What :func:`packed` packed; a bare cache, as earlier versions of this package wrote it, may hold specialized
    kernels."""
    if not content.startswith(_MAGIC):
        return {True: content}
    begin = len(_MAGIC) + 8
    end = begin + int.from_bytes(content[len(_MAGIC) : begin], "little")
    parts = {False: content[begin:end], True: content[end:]}
    return {specialized: part for specialized, part in parts.items() if part}


_networks: weakref.WeakValueDictionary[str, Kernels] = weakref.WeakValueDictionary()


def kernels_of(network: str, release: str) -> Kernels:
    """Returns the kernels that the engines of a network share for as long as one of them is loaded.

    Args:
        network: As :func:`network_of` names it.
        release: TensorRT-RTX's.
    """
    return _networks.setdefault(network, Kernels(shares(release)))


def _serialize(cache: Any) -> bytes:
    return bytes(memoryview(cache.serialize()))
