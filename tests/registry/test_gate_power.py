"""The latency gate with the noise of recorded calls: what is as fast is promoted, what is 1.2 times as slow never.

A smaller version of ``python -m benchmarks.gate_power simulate``, with fixed seeds.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gate_power
from mlflow_trt.registry import latency

RECORDED = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*-gate-power*.json"))
TRUTHS = {truth.name: truth for truth in gate_power.TRUTHS}


@pytest.fixture(scope="module", params=RECORDED, ids=lambda path: path.stem)
def recording(request):
    return gate_power.read(request.param)


@pytest.mark.parametrize(("points", "promotions"), [(1, 8), (10, 2)])
@pytest.mark.parametrize("name", ["as fast", "the two builds as recorded"])
def test_what_is_as_fast_is_promoted(recording, points, promotions, name):
    found = gate_power.simulate(recording, TRUTHS[name], points, promotions, latency.Latency())

    assert found.promoted == promotions
    assert max(found.seconds) < 90.0


@pytest.mark.parametrize(("points", "promotions"), [(1, 8), (10, 2)])
@pytest.mark.parametrize(
    "name", ["1.2 times as slow", "1.2 times as slow at one point", "each call longer by 0.2 medians"]
)
def test_what_is_1_2_times_as_slow_is_refused(recording, points, promotions, name):
    found = gate_power.simulate(recording, TRUTHS[name], points, promotions, latency.Latency())

    assert found.promoted == 0


def test_a_recording_is_read_as_it_was_written(tmp_path):
    times = np.array([[1e-3, 2e-3, 3e-3, 4e-3]])
    content = {
        "machine": {"gpu": "a GPU", "cores": 2, "cpu": "a CPU"},
        "network": "net",
        "backend": "TensorRT",
        "calls_in_a_round": latency.CALLS,
        "unit_seconds": gate_power.UNIT,
        "points": [{"label": "opt", "champion": gate_power.whole(times), "candidate": gate_power.whole(2 * times)}],
    }
    (tmp_path / "file.json").write_text(json.dumps(content))

    found = gate_power.read(tmp_path / "file.json")

    assert found.name == "net, TensorRT, a GPU"
    np.testing.assert_allclose(found.points[0].champion, times)
    np.testing.assert_allclose(found.points[0].candidate, 2 * times)


def test_replayed_calls_keep_their_neighbours_and_their_pairs():
    champion = np.arange(400.0).reshape(-1, 4)
    recorded = latency.Timed("opt", champion + 0.5, champion)
    clock = gate_power.Clock()
    replay = gate_power.Replay(recorded, TRUTHS["the two builds as recorded"], clock, np.random.default_rng(0))
    taken = []
    for _ in range(200):
        begin = clock()
        replay.champion()
        middle = clock()
        replay.candidate()
        taken.append((middle - begin, clock() - middle))

    calls = np.array(taken)

    np.testing.assert_allclose(calls[:, 1] - calls[:, 0], 0.5)
    assert set(np.diff(calls[:, 0])[:3]) == {1.0}
