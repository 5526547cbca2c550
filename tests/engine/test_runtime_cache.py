"""Which contexts compile into which cache object, and what of it the next process finds."""

from __future__ import annotations

import gc
import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import standin
from affine import AFFINE, rows, write_plan
from interfaces import interface, tensor
from manifests import host

from mlflow_trt.engine import kernel_files, runtime_cache
from mlflow_trt.engine.engine import TensorRTEngine
from mlflow_trt.engine.runtime_cache import Kernels, network_of
from mlflow_trt.plan.manifest import File


def test_compiled_kernels_are_kept_for_the_next_process(tmp_path, module, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))
    made = write_plan(tmp_path)
    with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as engine:
        for n in (1, 4, 2):
            engine.predict({"x": rows(n)})
        content = engine.runtime_cache()
    assert all(f"({n}, 3)".encode() in content for n in (1, 2, 4))
    path = kernel_files.path_for(made.file.sha256, made.release, host())
    assert kernel_files.read(path) == content
    with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as engine:
        assert engine.runtime_cache() == content
        engine.predict({"x": rows(4)})
        assert engine.runtime_cache() == content


def test_contexts_that_judge_begin_without_specialized_kernels(tmp_path, module, monkeypatch):
    """In this process, and from the bytes that it leaves to the next one."""
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))
    made = write_plan(tmp_path)
    for _ in range(2):
        with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as engine:
            for n in (1, 4, 2):
                engine.predict({"x": rows(n)})
    assert [engine.specialized for engine in module.engines] == [3, 3]
    assert [engine.misled for engine in module.engines] == [False, False]


def test_kernels_of_both_kinds_are_told_apart():
    for caches in ({False: b"plain", True: b"special"}, {False: b"plain"}, {True: b"special"}):
        assert runtime_cache.unpacked(runtime_cache.packed(caches)) == caches
    assert runtime_cache.unpacked(b"as earlier versions wrote it") == {True: b"as earlier versions wrote it"}


@pytest.mark.parametrize("memory_limit", [None, 1])
def test_a_batch_of_one_spoils_no_larger_one(tmp_path, module, memory_limit):
    """Whatever the order, and whether or not there is room for a context per size."""
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host(), memory_limit=memory_limit) as engine:
        for n in (1, 4, 2, 1, 4):
            for _ in range(3):
                np.testing.assert_array_equal(engine.predict({"x": rows(n)})["y"], rows(n) * 2 + 1)


def caches(module):
    """The cache object of the last context of each engine."""
    return [engine.config.cache for engine in module.engines]


def test_engines_of_one_network_share_the_kernels_of_a_shape(tmp_path, module):
    """Loaded ones: TensorRT-RTX loads them anew from bytes."""
    made = write_plan(tmp_path)
    first = TensorRTEngine(tmp_path, made, AFFINE, host=host())
    first.predict({"x": rows(4)})
    with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as second:
        second.predict({"x": rows(4)})
        assert caches(module)[1] is caches(module)[0]
        second.predict({"x": rows(2)})
        assert caches(module)[1] is not caches(module)[0], "another shape must not share them"
        first.close()
        for n in (4, 2):
            np.testing.assert_array_equal(second.predict({"x": rows(n)})["y"], rows(n) * 2 + 1)
        saved = second.runtime_cache()
        assert all(f"({n}, 3)".encode() in saved for n in (2, 4)), "what it took over is saved too"


def test_contexts_of_an_older_release_have_cache_objects_of_their_own(tmp_path, module, monkeypatch):
    """TensorRT-RTX 1.4 would run all but the first with its slower kernels."""
    assert [runtime_cache.shares(release) for release in ("1.4.0.76", "1.6.1.120", "1.10.0.1")] == [False, True, True]
    monkeypatch.setattr(runtime_cache, "shares", lambda release: False)  # the stand-in and its plan are of a newer one
    made = write_plan(tmp_path)
    with (
        TensorRTEngine(tmp_path, made, AFFINE, host=host()) as first,
        TensorRTEngine(tmp_path, made, AFFINE, host=host()) as second,
    ):
        for engine in (first, second):
            np.testing.assert_array_equal(engine.predict({"x": rows(4)})["y"], rows(4) * 2 + 1)
        one, other = caches(module)
        assert one is not other
        assert b"specialized" in other.content, "what the first compiled is there as bytes"


def test_two_calls_at_once_of_one_shape_share_its_kernels(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host(), max_contexts=2) as engine:
        engine.predict({"x": rows(4)})
        first = caches(module)[0]
        busy = engine._pool.acquire("another call's")
        engine.predict({"x": rows(4)})
        engine._pool.release(busy)
        assert engine.memory["lanes"] == 2
        assert caches(module)[0] is first


def test_what_another_version_brings_is_added_to_what_is_there(tmp_path, module, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))
    made = write_plan(tmp_path)
    path = kernel_files.path_for(made.file.sha256, made.release, host())
    with TensorRTEngine(tmp_path, made, AFFINE, host=host(), runtime_cache=False) as first:
        first.predict({"x": rows(4)})
        kernel_files.write(path, b"kernels of an earlier process")
        with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as second:
            content = second.runtime_cache()
            assert b"earlier" in content
            assert b"(4, 3)" in content


def test_kernels_go_with_the_last_context_that_uses_them(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        engine.predict({"x": rows(4)})
        (shared,) = runtime_cache._networks.values()
        assert len(shared._caches) == 1
    gc.collect()
    assert not shared._caches
    del shared
    assert not runtime_cache._networks


def test_other_networks_and_devices_have_kernels_of_their_own(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        loaded, profiles = engine._loaded(), engine.profiles
        same = network_of(loaded, AFFINE, profiles, 0)
        assert network_of(loaded, AFFINE, profiles, 0) == same
        others = [network_of(loaded, AFFINE, profiles, 1), network_of(loaded, AFFINE, (), 0)]
        face = interface([tensor("x", ("b", 3))], [tensor("y", ("b", 3), binding="output0")])
        others.append(network_of(loaded, face, profiles, 0))
        layers = SimpleNamespace(get_engine_information=lambda form: '{"Layers": ["a", "c"]}')
        loaded.engine.create_engine_inspector = lambda: layers
        others.append(network_of(loaded, AFFINE, profiles, 0))
        assert len({same, *others}) == 5


def test_a_refused_cache_is_as_if_it_were_not_there(tmp_path, module, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))
    shipped = b"kernels that came with the plan"
    (tmp_path / "plans/p").mkdir(parents=True)
    (tmp_path / "plans/p/runtime-cache.bin").write_bytes(shipped)
    file = File(path="plans/p/runtime-cache.bin", size=len(shipped), sha256=hashlib.sha256(shipped).hexdigest())
    made = write_plan(tmp_path, runtime_cache=file)
    kernel_files.write(kernel_files.path_for(made.file.sha256, made.release, host()), b"of another driver")
    with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as engine:
        assert runtime_cache.unpacked(engine.runtime_cache()) == {True: shipped}
    (tmp_path / "plans/p/runtime-cache.bin").write_bytes(b"damaged")
    with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as engine:
        assert engine.runtime_cache() is None
        engine.predict({"x": rows(1)})
        assert set(runtime_cache.unpacked(engine.runtime_cache())) == {False, True}


class Loaded:
    """As much of a deserialized engine as kernels ask for: caches, and a log."""

    def __init__(self):
        self.engine = SimpleNamespace(create_runtime_config=standin.Config)
        self.log = SimpleNamespace(text=lambda: "of another driver")


def attached(kernels, shapes, specialized=True):
    return kernels.attach(Loaded(), standin.Config(), shapes, specialized)


def test_the_first_content_that_is_taken_is_enough():
    asked = []

    def contents():
        for content in (b"damaged", b"kernels one", b"kernels two"):
            asked.append(content)
            yield content

    kernels = Kernels()
    kernels.begin(Loaded(), contents())
    assert asked == [b"damaged", b"kernels one"]
    assert runtime_cache.unpacked(kernels.serialize()) == {True: b"kernels one"}


def test_a_content_is_tried_once():
    loaded, kernels = Loaded(), Kernels()
    tried = []
    make = loaded.engine.create_runtime_config
    loaded.engine.create_runtime_config = lambda: tried.append(1) or make()
    for _ in range(3):
        kernels.begin(loaded, [b"damaged", b"kernels one"])
    assert len(tried) == 2


@pytest.mark.parametrize("saved", [iter(lambda: 1 / 0, None), [None]])
def test_contents_that_can_not_be_read_are_none(saved):
    kernels = Kernels()
    kernels.begin(Loaded(), saved)
    assert kernels.serialize() is None


def test_what_one_shape_learned_is_there_for_the_next():
    kernels = Kernels()
    first = attached(kernels, "one")
    first.raw.compile({"x": (1, 3)}, specialized=True)
    kernels.learn(first)
    second = attached(kernels, "two")
    assert second is not first
    assert b"(1, 3)" in second.raw.content
    assert attached(kernels, "one") is first, "who has the same shape shares it"
    plain = attached(kernels, "one, for all shapes", specialized=False)
    assert plain.raw.content == b"", "these must find no specialized kernels"


def test_a_shape_is_learned_once():
    kernels = Kernels()
    cache = attached(kernels, "one")
    cache.raw.compile({"x": (1, 3)}, specialized=True)
    kernels.learn(cache)
    cache.raw.compile({"x": (9, 9)}, specialized=True)
    kernels.learn(cache)
    assert b"(9, 9)" not in kernels.serialize()


def test_where_objects_are_not_shared_each_context_has_its_own():
    kernels = Kernels(shared=False)
    assert attached(kernels, "one") is not attached(kernels, "one")


def test_a_context_does_without_a_cache_that_can_not_be_made(monkeypatch):
    monkeypatch.setattr(standin.Config, "set_runtime_cache", lambda self, cache: False)
    assert attached(Kernels(), "one") is None
    monkeypatch.setattr(standin.Config, "create_runtime_cache", lambda self: 1 / 0)
    assert attached(Kernels(), "one") is None


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_a_file_that_was_cut_short_is_no_error(cut):
    whole = runtime_cache.packed({False: b"plain", True: b"special"})
    for part in runtime_cache.unpacked(whole[:cut]).values():
        assert part in whole
