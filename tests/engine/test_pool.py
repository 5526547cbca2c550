"""The pool's decisions, on bound contexts that only count."""

from __future__ import annotations

import random
import threading
import time
from types import SimpleNamespace

import pytest

from mlflow_trt.engine.pool import OutOfMemory, Pool
from mlflow_trt.errors import DeviceError


class Context:
    def __init__(self, factory, resources, key):
        self.factory, self.resources, self.key = factory, resources, key
        self.nbytes = factory.size(key)
        self.closed = False
        self.busy = threading.Lock()
        factory.held += self.nbytes
        factory.most = max(factory.most, factory.held)

    def close(self):
        assert not self.closed
        assert not self.busy.locked(), "closed while it ran"
        self.closed = True
        self.factory.held -= self.nbytes


class Factory:
    """Stands for the GPU: what it can't hold is out of memory."""

    def __init__(self, size=lambda key: 10, memory=10**9):
        self.size, self.memory = size, memory
        self.held = self.most = self.built = self.reused = self.resources = 0

    def open_resources(self):
        self.resources += 1
        return self.resources

    def close_resources(self, resources):
        self.resources -= 1

    def estimate(self, key):
        return self.size(key)

    def build(self, resources, key, old):
        if old is not None:
            assert old.resources == resources, "a context went to another stream slot's scratch memory"
            old.close()
            self.reused += 1
        if self.held + self.size(key) > self.memory:
            raise OutOfMemory("too much", "less", "less")
        self.built += 1
        return Context(self, resources, key)


def use(pool, key):
    """What a call does."""
    stream_slot = pool.acquire(key)
    try:
        bound = pool.find(stream_slot, key) or pool.open(stream_slot, key)
        assert bound.key == key
        assert not bound.closed
        assert bound.busy.acquire(blocking=False), "a bound context is used by two calls at once"
        time.sleep(0)
        bound.busy.release()
        return bound
    finally:
        pool.release(stream_slot)


def test_a_lane_serves_its_key_again():
    factory = Factory()
    pool = Pool(factory, 2, 1000)
    assert use(pool, "a") is use(pool, "a")
    assert use(pool, "b") is not use(pool, "a")
    assert factory.built == 2


def test_a_single_caller_fills_one_slot():
    factory = Factory()
    pool = Pool(factory, 4, 1000)
    for key in "abcabcabc":
        use(pool, key)
    assert (factory.resources, factory.built) == (1, 3)


def test_a_free_slot_that_knows_the_key_is_preferred():
    factory = Factory()
    pool = Pool(factory, 2, 1000)
    first, second = pool.acquire("a"), pool.acquire("b")
    pool.open(first, "a")
    pool.open(second, "b")
    pool.release(first)
    pool.release(second)
    stream_slot = pool.acquire("b")
    assert stream_slot is second
    pool.release(stream_slot)
    stream_slot = pool.acquire("new")
    assert stream_slot is first


def test_used_up_memory_makes_the_least_recently_used_lane_over():
    factory = Factory()
    pool = Pool(factory, 1, 30)
    for key in "abca":
        use(pool, key)
    use(pool, "d")  # b is the oldest
    assert factory.reused == 1
    built = factory.built
    for key in "acd":
        use(pool, key)
    assert factory.built == built
    use(pool, "b")
    assert factory.built == built + 1
    assert pool.used == factory.held == 30


def test_a_larger_lane_closes_as_many_as_it_takes():
    factory = Factory(size=lambda key: key)
    pool = Pool(factory, 1, 100)
    for key in (30, 31, 32):
        use(pool, key)
    use(pool, 90)
    assert pool.contexts == 1
    assert factory.held == 90


def test_one_lane_is_kept_even_if_it_is_beyond_the_limit():
    factory = Factory(size=lambda key: 500)
    pool = Pool(factory, 1, 100)
    assert use(pool, "a") is use(pool, "a")
    use(pool, "b")
    assert pool.contexts == 1


def test_every_slot_gets_its_share_though_another_has_taken_all():
    factory = Factory()
    pool = Pool(factory, 2, 100)
    for key in range(10):
        use(pool, key)
    assert pool.used == 100
    greedy = pool.acquire(9)
    other = pool.acquire(0)
    for key in range(5):
        pool.open(other, key)
    assert (greedy.used, other.used) == (100, 50)
    pool.release(greedy)  # what is beyond the limit and its share goes when it is done
    assert (greedy.used, other.used) == (50, 50)
    pool.release(other)


def test_a_lane_that_turns_out_larger_is_counted_anew():
    factory = Factory()
    pool = Pool(factory, 1, 100)
    for key in range(5):
        use(pool, key)
    stream_slot = pool.acquire(4)
    bound = pool.find(stream_slot, 4)
    factory.held += 70
    bound.nbytes = 80
    pool.weigh(stream_slot, 4)
    assert pool.used == factory.held == 100
    assert pool.contexts == 3
    pool.discard(stream_slot, 4)
    assert pool.used == 20
    pool.discard(stream_slot, "unknown")
    pool.release(stream_slot)


def test_out_of_memory_makes_room_and_tries_again():
    factory = Factory(memory=50)
    pool = Pool(factory, 2, 1000)
    for key in range(5):
        use(pool, key)
    assert use(pool, 5).key == 5
    assert factory.held == 10


def test_out_of_memory_leaves_the_pool_usable():
    factory = Factory(size=lambda key: key, memory=50)
    pool = Pool(factory, 2, 1000)
    use(pool, 40)
    for _ in range(3):
        with pytest.raises(OutOfMemory):
            use(pool, 60)
    assert use(pool, 50).key == 50
    pool.close()
    assert (factory.held, factory.resources) == (0, 0)


def test_calls_beyond_the_slots_wait_in_order():
    pool = Pool(Factory(), 1, 1000)
    stream_slot = pool.acquire("a")
    order = []

    def wait(name):
        mine = pool.acquire("a")
        order.append(name)
        pool.release(mine)

    threads = []
    for name in range(5):
        threads.append(threading.Thread(target=wait, args=(name,)))
        threads[-1].start()
        while len(pool._waiting) <= name:
            time.sleep(0.001)
    assert order == []
    pool.release(stream_slot)
    for thread in threads:
        thread.join()
    assert order == list(range(5))


def test_a_waiting_call_that_is_interrupted_loses_no_slot(monkeypatch):
    pool = Pool(Factory(), 1, 1000)
    stream_slot = pool.acquire("a")

    class Interrupted:
        """A lock whose owner is interrupted while it waits, before or after the stream slot was handed over."""

        def __init__(self, handed_over):
            self.handed_over = handed_over

        def acquire(self):
            if self.handed_over:
                pool.release(stream_slot)
            raise KeyboardInterrupt

        def release(self):
            pass

    for handed_over in (False, True):
        ticket = SimpleNamespace(lock=Interrupted(handed_over), stream_slot=None)
        with monkeypatch.context() as patch:
            patch.setattr("mlflow_trt.engine.pool._Ticket", lambda ticket=ticket: ticket)
            with pytest.raises(KeyboardInterrupt):
                pool.acquire("a")
        assert not pool._waiting
    assert pool.acquire("a") is stream_slot


def test_close_waits_for_who_runs_and_refuses_who_waits():
    factory = Factory()
    pool = Pool(factory, 1, 1000)
    use(pool, "a")
    stream_slot = pool.acquire("a")
    refused = []

    def wait():
        try:
            pool.acquire("a")
        except DeviceError as error:
            refused.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not pool._waiting:
        time.sleep(0.001)
    closing = threading.Thread(target=pool.close)
    closing.start()
    waiting.join(5)
    assert len(refused) == 1
    closing.join(0.05)
    assert closing.is_alive()
    assert factory.held == 10
    pool.release(stream_slot)
    closing.join(5)
    assert (factory.held, factory.resources) == (0, 0)
    with pytest.raises(DeviceError, match="closed"):
        pool.acquire("a")
    pool.close()


@pytest.mark.parametrize(("size", "limit"), [(1, 40), (2, 40), (2, 400), (3, 90)])
def test_no_lane_ever_runs_twice_at_once_and_the_limit_holds(size, limit):
    factory = Factory(size=lambda key: 5 + key)
    pool = Pool(factory, size, limit)
    failures = []

    def work(seed):
        chance = random.Random(seed)
        try:
            for _ in range(150):
                use(pool, chance.randrange(12))
        except BaseException as error:
            failures.append(error)

    # The factory's own counters are not made for threads; one lock stands for the engine's.
    lock, build = threading.Lock(), factory.build

    def locked(*args):
        with lock:
            return build(*args)

    factory.build = locked
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    # Each stream slot may be over by the bound context that it is opening.
    assert pool.used <= limit + size * 16
    pool.close()
    assert pool.contexts == 0
