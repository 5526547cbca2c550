"""The gate of accuracy, on real digits."""

from __future__ import annotations

import forged
import numpy as np
import pytest
from registries import crown, judged

from mlflow_trt.registry import gates
from mlflow_trt.registry.accuracy import judge


@pytest.fixture(scope="module")
def digits():
    """scikit-learn's handwritten digits 0, 1 and 2, and two classifiers: one that learned them, one that did not."""
    torch = pytest.importorskip("torch")
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits(n_class=3)
    x, y = (data.data / 16).astype(np.float32), data.target
    torch.manual_seed(0)
    learned = torch.nn.Linear(64, 3)
    steps = torch.optim.Adam(learned.parameters(), lr=0.05)
    for _ in range(60):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(learned(torch.from_numpy(x[:400])), torch.from_numpy(y[:400])).backward()
        steps.step()
    return x[400:], y[400:], learned, torch.nn.Linear(64, 3)


def test_a_version_that_knows_less_is_refused(registry, digits):
    pytest.importorskip("mlflow.models.evaluation")
    x, y, learned, ignorant = digits
    champion = registry.log(forged.plan("learned", module=learned, features=64, batch=(1, 8, 32)))
    worse = registry.log(forged.plan("ignorant", module=ignorant, features=64, batch=(1, 8, 32)))
    crown(registry, champion)
    gate = gates.Accuracy(x, y, max_drop=0.01, backend="reference")

    refused, passed = judged(registry, worse, gate), judged(registry, registry.again(champion), gate)

    assert refused.status == "failed"
    assert refused.figures["champion"] > 0.95
    assert refused.figures["candidate"] < 0.8
    assert passed.status == "passed"
    assert passed.figures["candidate"] == passed.figures["champion"]
    assert registry.client.search_runs(["0"], f"tags.mlflow_trt.evaluated LIKE '%{registry.name}%'") == [], "a dry run"


def test_a_metric_may_be_a_function_and_have_a_minimum(registry, digits):
    x, y, learned, _ = digits
    version = registry.log(forged.plan("learned", module=learned, features=64, batch=(4, 8, 32)))

    def errors(targets, predictions):
        return float(np.mean(targets != predictions))

    def gate(minimum):
        return gates.Accuracy(x, y, metric=errors, higher_is_better=False, minimum=minimum, backend="reference")

    assert judged(registry, version, gate(0.05)).status == "passed"
    assert judged(registry, version, gate(-0.01)).status == "failed"


@pytest.mark.parametrize(
    ("candidate", "champion", "drop", "higher", "expected"),
    [
        (0.90, 0.91, 0.01, True, "passed"),
        (0.89, 0.91, 0.01, True, "failed"),
        (0.95, 0.91, 0.0, True, "passed"),
        (0.12, 0.10, 0.01, False, "failed"),
        (0.11, 0.10, 0.01, False, "passed"),
        (float("nan"), 0.91, 0.01, True, "failed"),
        (0.5, None, 0.0, True, "passed"),
    ],
)
def test_at_most_so_much_worse(candidate, champion, drop, higher, expected):
    assert judge(candidate, champion, drop, higher_is_better=higher).status == expected
