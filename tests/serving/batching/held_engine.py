"""An engine that stands for a GPU's, so that a test decides how long a call takes; and a batcher that calls it."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import contextmanager

import numpy as np

from mlflow_trt.plan.api import Result
from mlflow_trt.plan.manifest import Branch, Interface, ShapeRange, Tensor, TensorLeaf
from mlflow_trt.plan.signature import CallSignature
from mlflow_trt.serving.batching.batcher import Batcher
from mlflow_trt.serving.served_model import ServedVersion

LONG = 20.0
"""Seconds that nothing here takes: a test that waits so long has failed."""


def interface(inputs, outputs):
    """``{name: shape}``, all float32 but ``ids``."""
    tensors = [
        [
            Tensor(name=n, binding=n, dtype=(d := "int64" if n == "ids" else "float32"), binding_dtype=d, shape=s)
            for n, s in group.items()
        ]
        for group in (inputs, outputs)
    ]
    leaves = [tuple(TensorLeaf(name=t.name) for t in group) for group in tensors]
    arguments = Branch(
        kind="tuple", items=(Branch(kind="tuple", items=leaves[0]), Branch(kind="dict", keys=(), items=()))
    )
    return Interface(
        inputs=tensors[0], outputs=tensors[1], arguments=arguments, result=Branch(kind="tuple", items=leaves[1])
    )


def profile(**ranges):
    return {name: ShapeRange(min=low, opt=opt, max=high) for name, (low, opt, high) in ranges.items()}


PLAIN = interface({"x": ("batch", 2)}, {"y": ("batch", 2)})
VERSION = ServedVersion("/stand-in", "1", "stand-in", PLAIN, ())
UP_TO_8 = (profile(x=((1, 2), (8, 2), (8, 2))),)
SEQUENCE = interface({"x": ("batch", "length")}, {"y": ("batch", "length")})
SEQUENCES = (profile(x=((1, 1), (8, 4), (8, 9))),)
APART = (profile(x=((1, 1), (2, 4), (2, 9))), profile(x=((8, 4), (8, 4), (16, 9))))
"""Nothing takes 3 to 7 rows, and more than 2 only if they are 4 to 9 long."""


class StandIn:
    """Stands for an engine: computes ``y = compute(x)``, and waits in every call while it is held."""

    backend = "reference"

    def __init__(self, interface=PLAIN, profiles=UP_TO_8, compute=lambda x: 2 * x):
        self.interface, self.profiles, self.compute = interface, profiles, compute
        self.inputs = []
        self.threads = []
        self.began = queue.Queue()
        self._call_signature = CallSignature(interface, profiles)
        self._go = threading.Event()
        self._go.set()

    def predict(self, inputs):
        self._call_signature.check(inputs)
        self.inputs.append({name: array.copy() for name, array in inputs.items()})
        self.threads.append(threading.current_thread())
        self.began.put(next(iter(inputs.values())).shape)
        assert self._go.wait(3 * LONG), "the test never let the engine go on"
        outputs = [t.name for t in self.interface.outputs]
        return Result({name: self.compute(inputs["x"]) for name in outputs}, "reference", "plan", 0)

    @property
    def batches(self):
        """The first column of every batch, as numbers."""
        return [call["x"][:, 0].tolist() for call in self.inputs]

    def hold(self):
        self._go.clear()

    def go_on(self):
        self._go.set()


class Poisoned:
    """Computes ``2 x`` unless a row says ``bad``; then it raises."""

    def __init__(self, error=None, bad=13.0):
        self.error, self.bad = error or ValueError("bad row"), bad

    def __call__(self, x):
        if (x == self.bad).any():
            raise self.error
        return 2 * x


@contextmanager
def batcher(*engines, **options):
    made = Batcher(engines, VERSION, **{"workers": 1, **options})
    try:
        # A worker that is still starting would find what nobody woke it for.
        all_wait(made)
        yield made
    finally:
        for engine in engines:
            getattr(engine, "go_on", lambda: None)()
        made.close()
        assert not any(thread.is_alive() for thread in made._threads)


@contextmanager
def busy(engine, **options):
    """A batcher whose only worker is in a call, so that everything further waits until the engine goes on."""
    with batcher(engine, **options) as made:
        engine.hold()
        first = made.submit(x(0.5))
        engine.began.get(timeout=LONG)
        yield made
        engine.go_on()
        assert first.result(LONG).outputs["y"].tolist() == [[1.0, 1.0]]


def all_wait(batcher):
    """Until every worker waits, for requests or for others to join one."""
    assert becomes(lambda: len(batcher._work_waits._waiters) == len(batcher._threads) - 1)


def x(*values, length=2):
    """A row for each number, which fills it."""
    return {"x": np.repeat(np.array(values, np.float32)[:, None], length, axis=1)}


def y(future):
    return future.result(LONG).outputs["y"][:, 0].tolist()


def in_seconds(seconds):
    return time.monotonic() + seconds


def becomes(condition):
    """For what another thread does a moment later."""
    end = in_seconds(LONG)
    while not condition() and time.monotonic() < end:
        threading.Event().wait(0.001)
    return condition()
