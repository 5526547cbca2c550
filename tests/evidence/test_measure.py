from __future__ import annotations

import numpy as np
import pytest
from interfaces import interface, span, tensor
from programs import nested

from mlflow_trt import plan
from mlflow_trt.engine import load as load_engine
from mlflow_trt.evidence import measure
from mlflow_trt.plan import files
from mlflow_trt.plan.api import Result
from mlflow_trt.plan.files import GoldenTensors
from mlflow_trt.plan.manifest import Tolerance

TIGHT = Tolerance(rel_l2=1e-3, cosine=0.999)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("torch", reason="the reference backend runs with it")
    folder = tmp_path_factory.mktemp("nested")
    return (folder, *nested(folder))


@pytest.fixture(scope="module")
def engine(model):
    with load_engine(*model[:2], backend="reference") as made:
        yield made


@pytest.fixture(scope="module")
def golden(engine, model):
    """What the module itself answers, without the engine in between."""
    import torch

    inputs, outputs = {}, {}
    random = np.random.default_rng(0)
    for point, n in (("min", 1), ("opt", 2), ("max", 8)):
        x, b = random.standard_normal((n, 4)).astype("f4"), random.standard_normal((n, 3)).astype("f4")
        with torch.no_grad():
            answer = model[2](torch.from_numpy(x), d={"b": torch.from_numpy(b)})
        inputs |= {f"0.{point}/x": x, f"0.{point}/d_b": b}
        outputs |= {
            f"0.{point}/y": answer["y"].numpy(),
            f"0.{point}/relu": answer["n"][2].numpy(),
            f"0.{point}/best": answer["best"].numpy(),
        }
    return GoldenTensors(inputs, outputs)


def test_parity_of_a_real_model(engine, golden):
    parity = measure.measure_parity(engine, golden, TIGHT)
    assert parity.status == "passed"
    assert [(p.profile, p.point, p.identical_rows) for p in parity.points] == [
        (0, "min", None),
        (0, "opt", True),
        (0, "max", True),
    ]
    assert [o.output for o in parity.points[0].outputs] == ["y", "relu", "best"]
    assert parity.points[0].outputs[2].top1 == 1.0
    assert parity.host.machine
    assert parity.tolerance == TIGHT


def test_parity_of_other_answers_fails(engine, golden):
    wrong = {name: array + 0.1 if name.endswith("max/y") else array for name, array in golden.outputs.items()}
    parity = measure.measure_parity(engine, GoldenTensors(golden.inputs, wrong), TIGHT)
    assert parity.status == "failed"
    failed = [(p.point, o.output) for p in parity.points for o in p.outputs if not o.passed]
    assert failed == [("max", "y")]


class Wrong:
    """An engine that is wrong in later rows, as some networks were on real releases."""

    backend = "tensorrt"

    def __init__(self, fault):
        self.interface = interface(
            [tensor("x", ("batch", 3)), tensor("w", (3,))], [tensor("y", ("batch", 3)), tensor("s", (3,))]
        )
        self.profiles = ({"x": span((1, 3), (2, 3), (4, 3)), "w": span((3,), (3,), (3,))},)
        self.fault = fault

    def predict(self, inputs):
        y = inputs["x"] * inputs["w"]
        y[1:] = y[1:] * (1 + self.fault)
        return Result({"y": y, "s": inputs["w"]})

    def __call__(self, x, w):
        return self.predict({"x": x, "w": w})


@pytest.mark.parametrize(("fault", "same"), [(0.0, True), (1e-6, True), (5e-4, False), (1.0, False), (np.nan, False)])
def test_identical_rows(fault, same):
    random = np.random.default_rng(0)
    inputs = {"x": random.standard_normal((4, 3)).astype("f4"), "w": np.ones(3, "f4")}
    golden = GoldenTensors(
        {f"0.max/{n}": a for n, a in inputs.items()}, {"0.max/y": inputs["x"].copy(), "0.max/s": inputs["w"]}
    )
    parity = measure.measure_parity(Wrong(fault), golden, Tolerance(rel_l2=1e-3, cosine=-1))
    assert parity.points[0].identical_rows is same
    assert (parity.status == "passed") is same


class Computed:
    """A right engine, given as a function of its inputs."""

    backend = "tensorrt"

    def __init__(self, function, inputs, outputs, **ranges):
        self.interface = interface(
            [tensor(n, s) for n, s in inputs.items()], [tensor(n, s) for n, s in outputs.items()]
        )
        spans = {"batch": (1, 2, 4), **ranges}

        def point(shape, place):
            return tuple(
                spans[size][place] if size in spans else 2 * spans["batch"][place] if isinstance(size, str) else size
                for size in shape
            )

        self.profiles = ({n: span(*(point(s, place) for place in range(3))) for n, s in inputs.items()},)
        self.function = function

    def predict(self, inputs):
        outputs = self.function(**{name: array.copy() for name, array in inputs.items()})
        return Result(dict(zip([t.name for t in self.interface.outputs], outputs)))

    def __call__(self, *args):
        return self.predict({t.name: a for t, a in zip(self.interface.inputs, args)})

    def identical_rows(self):
        """The verdict at the largest sizes, with inputs that differ everywhere."""
        random = np.random.default_rng(0)
        shapes = [self.profiles[0][t.name].max for t in self.interface.inputs]
        inputs = {t.name: random.standard_normal(s).astype("f4") for t, s in zip(self.interface.inputs, shapes)}
        outputs = self.predict(inputs)
        golden = GoldenTensors(
            {f"0.max/{n}": a for n, a in inputs.items()}, {f"0.max/{n}": a for n, a in outputs.items()}
        )
        return measure.measure_parity(self, golden, TIGHT).points[0].identical_rows


def _softmax(scores):
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


RIGHT = {
    "one batch in two inputs": (
        lambda x, m: [x * m],
        {"x": ("batch", 3), "m": ("batch", 3)},
        {"y": ("batch", 3)},
    ),
    "a batch that is not first elsewhere": (
        lambda x, h: [x + h.sum(0), h * x[None]],
        {"x": ("batch", 3), "h": (2, "batch", 3)},
        {"y": ("batch", 3), "g": (2, "batch", 3)},
    ),
    "similarities of two batches": (
        lambda a, b: [a @ b.T],
        {"a": ("batch", 3), "b": ("n", 3)},
        {"y": ("batch", "n")},
    ),
    "one batch that attends to another": (
        lambda a, b: [_softmax(a @ b.T) @ b],
        {"a": ("batch", 3), "b": ("n", 3)},
        {"y": ("batch", 3)},
    ),
    "one batch under two symbols": (
        lambda a, b: [a * b[np.arange(len(a))]],
        {"a": ("batch", 3), "b": ("n", 3)},
        {"y": ("batch", 3)},
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_identical_rows_of_a_right_engine(case):
    assert Computed(*RIGHT[case], n=(1, 2, 4)).identical_rows() is True


UNJUDGED = {
    "rows that see each other's places": (
        lambda x: [np.tril(x @ x.T)],
        {"x": ("batch", 3)},
        {"y": ("batch", "batch")},
    ),
    "relations of the rows": (
        lambda x, r: [np.tril(r) @ x],
        {"x": ("batch", 3), "r": ("batch", "batch")},
        {"y": ("batch", 3)},
    ),
    "two rows for one": (
        lambda x, p: [x * p[::2] - p[1::2]],
        {"x": ("batch", 3), "p": ("2*batch", 3)},
        {"y": ("batch", 3)},
    ),
    "no output has the batch": (lambda x: [x.sum(0)], {"x": ("batch", 3)}, {"y": (3,)}),
}


@pytest.mark.parametrize("case", UNJUDGED)
def test_identical_rows_that_can_not_be_judged(case):
    assert Computed(*UNJUDGED[case]).identical_rows() is None


def test_a_fault_along_a_dimension_that_is_not_first_is_seen():
    def wrong(x, h):
        h[:, 1:] *= 1.5
        return [x * 1, h]

    shapes = {"x": ("batch", 3), "h": (2, "batch", 3)}
    assert Computed(wrong, shapes, {"y": ("batch", 3), "g": (2, "batch", 3)}).identical_rows() is False


@pytest.mark.parametrize("length", [16, (2, 8, 16)])
def test_identical_rows_of_a_transformer_with_a_mask(tmp_path, length):
    """Nothing in its program ties the rows of the mask to those of the tokens."""
    torch = pytest.importorskip("torch", reason="needs the conversion extra")
    transformers = pytest.importorskip("transformers")
    import forged

    from mlflow_trt import Input

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=50, max_position_embeddings=32, **sizes)).eval()
    model.forward, whole = (
        (lambda input_ids, attention_mask: whole(input_ids, attention_mask).last_hidden_state),
        model.forward,
    )
    random = np.random.default_rng(0)
    given = [{"input_ids": random.integers(0, 50, (3, 16)), "attention_mask": random.integers(0, 2, (3, 16))}]
    given[0]["attention_mask"][:, 0] = 1
    made = forged.described_plan(model, [Input(((1, 4, 8), length), "int64")] * 2, golden_inputs=given)
    assert {t.shape[0] for t in (*made.manifest.interface.inputs, *made.manifest.interface.outputs)} == {"batch"}
    with load_engine(tmp_path, plan.write([made], tmp_path, program=True), backend="reference") as engine:
        parity = measure.measure_parity(engine, made.golden, TIGHT)
    assert parity.status == "passed"
    judged = [p.identical_rows for p in parity.points]
    assert judged == [None, *[True] * (len(judged) - 1)]
    assert len(judged) >= 4


def test_golden_tensors_survive_their_files(engine, golden, tmp_path):
    """Scalars too: they must not come back as arrays of one element."""
    scalar = {"0.opt/n": np.array(3), **golden.inputs}
    written = files._write_golden(tmp_path, GoldenTensors(scalar, golden.outputs))
    read = plan.read_golden(tmp_path, written)
    assert read.inputs["0.opt/n"].shape == ()
    assert read.inputs["0.opt/n"] == 3
    same = GoldenTensors({k: v for k, v in read.inputs.items() if k in golden.inputs}, read.outputs)
    parity = measure.measure_parity(engine, same, TIGHT)
    assert parity.status == "passed"
    assert [p.point for p in parity.points] == ["min", "opt", "max"]


def test_nothing_to_measure(engine):
    assert measure.measure_parity(engine, GoldenTensors({}, {}), TIGHT).status == "not_measured"
    assert measure.measure_latency(engine, GoldenTensors({}, {}), 1).status == "not_measured"


def test_latency(engine, golden):
    latency = measure.measure_latency(engine, golden, runs=5, warm_up=1)
    assert [(p.profile, p.point, p.batch, p.runs) for p in latency.points] == [
        (0, "min", 1, 5),
        (0, "opt", 2, 5),
        (0, "max", 8, 5),
    ]
    assert all(0 < p.p50_ms <= p.p99_ms for p in latency.points)
    assert latency.host.machine


def test_latency_with_made_up_inputs(engine):
    latency = measure.measure_latency(engine, runs=3, warm_up=1)
    assert sorted((p.point, p.batch) for p in latency.points) == [("max", 8), ("min", 1), ("opt", 2)]


def test_latency_counts_calls_and_leaves_the_warm_up_out():
    class Counting(Wrong):
        calls = 0

        def predict(self, inputs):
            import time

            self.calls += 1
            time.sleep(0.05 if self.calls <= 3 else 0)
            return super().predict(inputs)

    engine = Counting(0.0)
    engine.profiles = ({"x": span((2, 3), (2, 3), (2, 3)), "w": span((3,), (3,), (3,))},)
    (point,) = measure.measure_latency(engine, runs=7, warm_up=3).points
    assert engine.calls == 10
    assert point.p99_ms < 25


def test_a_slow_model_is_timed_over_fewer_calls(monkeypatch):
    monkeypatch.setattr(measure, "_LONGEST", 0.0)
    (point, *_) = measure.measure_latency(Wrong(0.0), runs=1000).points
    assert point.runs == 1


def test_latency_by_batch(engine):
    rows = measure.latency_by_batch(engine, runs=3, warm_up=1)
    assert [row["batch"] for row in rows] == [1, 2, 4, 8]
    assert all(row["per_second"] == pytest.approx(row["batch"] * 1000 / row["p50_ms"]) for row in rows)
    assert all(row["p99_ms"] >= row["p50_ms"] for row in rows)


def test_latency_by_batch_over_profiles_with_a_gap():
    engine = Wrong(0.0)
    ranges = ((3, 3, 5), (20, 30, 40))
    engine.profiles = tuple({"x": span(*((n, 3) for n in r)), "w": span((3,), (3,), (3,))} for r in ranges)
    assert [row["batch"] for row in measure.latency_by_batch(engine, runs=1, warm_up=1)] == [3, 4, 32, 40]


def _swept(*case, **ranges):
    """Batch sizes, and the shapes of all inputs at each."""
    engine = Computed(*case, **ranges)
    called = []
    engine.function = lambda **arrays: called.append(tuple(a.shape for a in arrays.values())) or [0]
    sizes = [row["batch"] for row in measure.latency_by_batch(engine, runs=1, warm_up=1)]
    return sizes, list(dict.fromkeys(called))


def test_latency_by_batch_where_another_input_has_the_batch_elsewhere():
    case = RIGHT["a batch that is not first elsewhere"]
    assert _swept(*case) == ([1, 2, 4], [((1, 3), (2, 1, 3)), ((2, 3), (2, 2, 3)), ((4, 3), (2, 4, 3))])


def test_latency_by_batch_of_two_batches():
    case = RIGHT["similarities of two batches"]
    assert _swept(*case, n=(1, 2, 4))[1] == [((1, 3), (1, 3)), ((2, 3), (2, 3)), ((4, 3), (4, 3))]
    assert _swept(*case, n=(3, 5, 9))[1] == [((1, 3), (5, 3)), ((2, 3), (5, 3)), ((4, 3), (5, 3))]


def test_latency_by_batch_where_sizes_follow_from_the_batch():
    assert _swept(*UNJUDGED["two rows for one"]) == ([], [])


def test_no_batch_dimension():
    engine = Wrong(0.0)
    engine.interface = interface([tensor("x", (2, 3)), tensor("w", (3,))], [tensor("y", (2, 3))])
    engine.profiles = ({"x": span((2, 3), (2, 3), (2, 3)), "w": span((3,), (3,), (3,))},)
    assert measure.latency_by_batch(engine) == []
    assert measure.measure_latency(engine, runs=1).points[0].batch is None


def test_made_up_inputs_have_the_inputs_dtypes():
    face = interface(
        [tensor("a", ("n", 2)), tensor("b", ("n",), "int64"), tensor("c", (3,), "bool"), tensor("d", (), "float16")],
        [tensor("y", ("n",))],
    )
    profiles = ({"a": span((1, 2), (1, 2), (3, 2)), "b": span((1,), (1,), (3,)), "c": span((3,), (3,), (3,))},)
    made = list(measure.made_up_points(face, profiles))
    assert [(i, p) for i, p, _ in made] == [(0, "opt"), (0, "max")]
    assert {n: (a.dtype.name, a.shape) for n, a in made[1][2].items()} == {
        "a": ("float32", (3, 2)),
        "b": ("int64", (3,)),
        "c": ("bool", (3,)),
        "d": ("float16", ()),
    }
