"""Calls of different sizes in turn, and calls from several threads, on one loaded model."""

from __future__ import annotations

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import mlflow_trt

from .context import Context, arrays
from .predicting import SETTLE_S
from .record import Measurement
from .timing import Rounds, interleave

IN_TURN = "1 and 8 in turn ÷ sum of each alone"
MIX = "random sizes 1 to 32 ÷ sum of each alone"
MIX_SMALL = "the same with memory_limit = 1 GiB"
THREADS = "8 threads ÷ 1 thread, images per second"


def in_turn(context: Context) -> Measurement:
    """ResNet-50 FP16: batch 1, then 8, then 1 …, against as many calls of one size."""
    context.need_gpu()
    one, eight = arrays("resnet50", 1), arrays("resnet50", 8)
    with mlflow_trt.load_model(context.model("resnet50")) as engine:

        def pair() -> None:
            engine.predict(one)
            engine.predict(eight)

        for _ in range(20):
            pair()
        time.sleep(SETTLE_S)
        found = interleave(
            {
                "batch 1 alone": lambda: engine.predict(one),
                "batch 8 alone": lambda: engine.predict(eight),
                "1 and 8 in turn, a pair": pair,
            },
            rounds=context.several(30, 4),
            calls=context.several(30, 5),
            deadline=context.deadline(),
        )
    alone = [
        (statistics.median(a) + statistics.median(b))
        for a, b in zip(found["batch 1 alone"], found["batch 8 alone"], strict=True)
    ]
    pairs = [statistics.median(samples) for samples in found["1 and 8 in turn, a pair"]]
    measurement = Measurement(values={IN_TURN: statistics.median(p / a for p, a in zip(pairs, alone, strict=True))})
    for name, rounds in found.items():
        measurement.add(name, rounds)
    return measurement


def random_mix(context: Context) -> Measurement:
    """ResNet-50 FP16: sizes from 1 to 32 at random, against as many calls of each size alone."""
    context.need_gpu()
    measurement = Measurement(notes=["Sizes are drawn uniformly, once; every size was called before it counts."])
    folder = context.model("resnet50")
    random = np.random.default_rng(0)
    calls = {size: arrays("resnet50", size) for size in range(1, 33)}
    for goal, limit, share in ((MIX, None, 0.5), (MIX_SMALL, 1 << 30, 1.0)):
        if time.monotonic() > context.deadline(0.7):
            measurement.missing[goal] = "the time budget was used up"
            continue
        with mlflow_trt.load_model(folder, memory_limit=limit) as engine:
            known = []
            for size in random.permutation(32) + 1:
                for _ in range(3):  # compiles the size's kernels, which takes a second or two where no cache has them
                    engine.predict(calls[int(size)])
                known.append(int(size))
                if time.monotonic() > context.deadline(share * 0.6):
                    break
            if len(known) < 32:
                measurement.notes.append(f"{goal}: only {len(known)} of the 32 sizes, for want of time.")
            sizes = [int(n) for n in random.choice(known, context.several(400, 40))]
            time.sleep(SETTLE_S)
            alone = {}
            for size in sorted(set(sizes)):
                for _ in range(3):
                    engine.predict(calls[size])
                alone[size] = statistics.median(_timed(engine, calls[size]) for _ in range(context.several(15, 5)))
            mixed: Rounds = []
            for _ in range(context.several(8, 2)):
                mixed.append([_timed(engine, calls[size]) for size in sizes])
                if time.monotonic() > context.deadline(share):
                    break
        wanted = sum(alone[size] for size in sizes)
        measurement.values[goal] = statistics.median(sum(samples) for samples in mixed) / wanted
        text = "a quarter of what is free" if limit is None else "1 GiB"
        measurement.add(f"a call in the mix, memory limit {text}", mixed)
        measurement.add(f"each size alone (medians), memory limit {text}", [list(alone.values())])
    return measurement


def _timed(engine: mlflow_trt.Engine, inputs: dict[str, np.ndarray]) -> float:
    begin = time.perf_counter()
    engine.predict(inputs)
    return time.perf_counter() - begin


def threads(context: Context) -> Measurement:
    """ResNet-50 FP16, batch 1: images per second of 8 threads and of 1 on one loaded model, in turn."""
    context.need_gpu()
    seconds = context.several(10, 5) / 10
    measurement = Measurement(notes=[f"Turns of {seconds:g} s, 1 thread and 8 threads one after the other."])
    with mlflow_trt.load_model(context.model("resnet50")) as engine:
        for batch in (1, 8):
            inputs = arrays("resnet50", batch)
            for count in (1, 8):  # each context of the pool compiles and captures once
                _calls_per_second(engine, inputs, count, 3.0)
            rates: dict[int, list[float]] = {1: [], 2: [], 4: [], 8: []}
            ratios = []
            for turn in range(context.several(8, 2)):
                for count in list(rates) if turn % 2 == 0 else reversed(list(rates)):
                    rates[count].append(_calls_per_second(engine, inputs, count, seconds) * batch)
                ratios.append(rates[8][-1] / rates[1][-1])
                if time.monotonic() > context.deadline(0.5 if batch == 1 else 1.0):
                    break
            measurement.values[f"{THREADS}, batch {batch}"] = statistics.median(ratios)
            for count, found in rates.items():
                measurement.add(f"batch {batch}, {count} thread{'s' * (count > 1)}", [found], "images/s")
    return measurement


def _calls_per_second(engine: mlflow_trt.Engine, inputs: dict[str, np.ndarray], count: int, seconds: float) -> float:
    """Lets ``count`` threads call at once, and counts the calls that end within the time."""
    barrier = threading.Barrier(count + 1)
    stop = threading.Event()

    def work() -> int:
        done = 0
        barrier.wait()
        while not stop.is_set():
            engine.predict(inputs)
            done += 1
        return done

    with ThreadPoolExecutor(count) as pool:
        jobs = [pool.submit(work) for _ in range(count)]
        barrier.wait()
        begin = time.perf_counter()
        time.sleep(seconds)
        stop.set()
        total = sum(job.result() for job in jobs)
        return total / (time.perf_counter() - begin)
