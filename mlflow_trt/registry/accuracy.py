"""The accuracy gate: labelled data and a metric, "at most so much worse than the champion"."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

import numpy as np

from ..errors import SettingError
from ..evidence import names
from ..plan.signature import batch_symbols
from .gate_context import GateContext, Subject
from .verdicts import Chart, Mark, Table, Verdict

Metric = Union[str, Callable[[np.ndarray, np.ndarray], float]]
Predict = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Accuracy:
    """The version is at most ``max_drop`` worse than the present champion on labelled data, and above ``minimum``.

    Both versions run here and now, on the same rows. Their predictions go through :func:`mlflow.models.evaluate`, so
    that MLflow's own metrics can be named and each evaluation is a run in MLflow; a metric given as a function is
    called as ``metric(targets, predictions)`` instead, which needs no evaluation of MLflow's.
    """

    data: Any
    """An array for a model of one input, or arrays by input name; the first dimension counts the rows."""
    targets: Any
    """The right answer for each row."""
    metric: Metric = "accuracy_score"
    """A name among the metrics of ``mlflow.models.evaluate``, or a function."""
    model_type: Literal["classifier", "regressor"] = "classifier"
    """What ``mlflow.models.evaluate`` is told."""
    max_drop: float = 0.0
    """How much worse than the champion is allowed, in the metric's unit."""
    minimum: float | None = None
    """What the metric must reach whatever the champion's is (for a metric that is to be low: stay under)."""
    higher_is_better: bool = True
    predict: Predict | None = None
    """``predict(engine, data)`` gives a prediction for each row. None: the first output; for a classifier the
    index of its largest entry."""
    device: int = 0
    backend: Literal["tensorrt", "reference"] = "tensorrt"
    """``"reference"`` judges the logged programs on the CPU instead of the engines, and says so."""
    allow_not_measured: bool = False

    name = "accuracy"

    def __call__(self, context: GateContext) -> Verdict:
        """Predicts with both, evaluates, judges."""
        candidate = self._measure(context.candidate, context)
        champion = None
        if context.champion is not None and context.champion.model is not None:
            champion = self._measure(context.champion, context)
        where = " (the logged programs on the CPU, not the engines)" if self.backend == "reference" else ""
        return judge(
            candidate,
            champion,
            self.max_drop,
            minimum=self.minimum,
            higher_is_better=self.higher_is_better,
            metric=(self.metric if isinstance(self.metric, str) else self.metric.__name__) + where,
        )

    def _measure(self, subject: Subject, context: GateContext) -> float:
        with subject.load(device=self.device, backend=self.backend) as engine:
            if self.predict is not None:
                predictions = np.asarray(self.predict(engine, self.data))
            else:
                predictions = predict_rows(engine, self.data, classes=self.model_type == "classifier")
        targets = np.asarray(self.targets)
        if len(predictions) != len(targets):
            raise SettingError(
                f"There are {len(predictions)} predictions for {len(targets)} targets.",
                "one prediction for each row",
                "check data, targets and predict",
            )
        if not isinstance(self.metric, str):
            return float(self.metric(targets, predictions))
        return _evaluate(subject, predictions, targets, self.metric, self.model_type, context.dry_run)


def judge(
    candidate: float,
    champion: float | None,
    max_drop: float,
    *,
    minimum: float | None = None,
    higher_is_better: bool = True,
    metric: str = "accuracy",
) -> Verdict:
    """Passed if the candidate is at most ``max_drop`` worse and reaches the minimum.

    Args:
        candidate: Its metric.
        champion: The champion's; None: there is none to compare with.
        max_drop: What is allowed, in the metric's unit.
        minimum: What must be reached, or stayed under where lower is better.
        higher_is_better: Which way the metric goes.
        metric: Its name.
    """
    sign = 1.0 if higher_is_better else -1.0
    reasons = []
    if not math.isfinite(candidate):
        reasons.append(f"{metric} is {candidate}.")
    # Metrics are sums of many rows: what differs in the last bits is equal.
    slack = 1e-9 * max(abs(candidate), abs(champion or 0.0), 1.0)
    limit = None if champion is None else champion - sign * max_drop
    if limit is not None and not sign * (candidate - limit) >= -slack:
        both = f"{metric} is {candidate:.6g}, and the champion's is {champion:.6g}"
        reasons.append(f"{both}: worse by more than {max_drop:g}.")
    if minimum is not None and not sign * (candidate - minimum) >= -slack:
        reasons.append(f"{metric} is {candidate:.6g}, and must be at {'least' if sign > 0 else 'most'} {minimum:g}.")
    rows = [("candidate", f"{candidate:.6g}")]
    marks = [Mark("candidate", candidate, candidate, candidate, not reasons)]
    if champion is not None:
        rows.append(("champion", f"{champion:.6g}"))
        marks.append(Mark("champion", champion, champion, champion, True))
    table = Table("Accuracy", ("version", metric), tuple(rows))
    charts = (Chart("Accuracy", metric, tuple(marks), limit if limit is not None else minimum),)
    figures = {"metric": metric, "candidate": candidate, "champion": champion, "max_drop": max_drop}
    if reasons:
        return Verdict("accuracy", "failed", tuple(reasons), (table,), charts, figures=figures)
    compared = f", the champion's {champion:.6g}" if champion is not None else "; there is no champion to compare with"
    return Verdict("accuracy", "passed", (f"{metric} {candidate:.6g}{compared}.",), (table,), charts, figures=figures)


def predict_rows(engine: Any, data: Any, *, classes: bool) -> np.ndarray:
    """Predicts row by row in batches that the engine takes.

    Args:
        engine: A loaded version.
        data: An array for a model of one input, or arrays by input name.
        classes: Whether to answer the index of the largest entry of the first output.
    """
    names = [t.name for t in engine.interface.inputs]
    arrays = {name: np.asarray(a) for name, a in (data if isinstance(data, Mapping) else {names[0]: data}).items()}
    output = engine.interface.outputs[0].name
    parts = [engine.predict(batch)[output][:count] for batch, count in _batches(engine, arrays)]
    answers = np.concatenate(parts)
    return answers.argmax(axis=-1) if classes and answers.ndim > 1 else answers


def _batches(engine: Any, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Yields inputs and how many of their rows count: the last batch is filled up where it is too small."""
    symbols = batch_symbols(engine.interface)
    carriers = [
        t for t in engine.interface.inputs if t.shape and (t.shape[0] in symbols or isinstance(t.shape[0], int))
    ]
    low, high = 1, 1
    for profile in engine.profiles:
        ranges = [profile[t.name] for t in carriers if t.name in profile]
        if ranges and (largest := min(r.max[0] for r in ranges)) > high:
            low, high = max(r.min[0] for r in ranges), largest
    rows = len(next(iter(arrays.values())))
    for start in range(0, rows, high):
        taken = {name: array[start : start + high] for name, array in arrays.items()}
        count = len(next(iter(taken.values())))
        if count < low:
            index = np.minimum(np.arange(low), count - 1)
            taken = {name: array[index] for name, array in taken.items()}
        yield taken, count


def _evaluate(
    subject: Subject, predictions: np.ndarray, targets: np.ndarray, metric: str, model_type: str, dry_run: bool
) -> float:
    import mlflow
    import pandas as pd  # type: ignore[import-untyped,unused-ignore]

    frame = pd.DataFrame({"target": targets.tolist(), "prediction": predictions.tolist()})
    with mlflow.start_run(nested=True, run_name=f"evaluation of {subject.name}/{subject.version}") as run:
        metrics = mlflow.models.evaluate(
            data=frame,
            targets="target",
            predictions="prediction",
            model_type=model_type,
            evaluators="default",
            evaluator_config={"log_model_explainability": False, "log_explainer": False},
        ).metrics
        mlflow.set_tag(names.EVALUATED, subject.uri)
    if dry_run:
        mlflow.delete_run(run.info.run_id)
    if metric not in metrics:
        raise SettingError(
            f"mlflow.models.evaluate gives no metric {metric!r} for a {model_type}.",
            f"one of {', '.join(sorted(metrics))}",
            "name one of these, or give a function of (targets, predictions)",
        )
    return float(metrics[metric])
