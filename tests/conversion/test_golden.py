# ruff: noqa: E402
"""What PyTorch answers at the profile points."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch import nn

from mlflow_trt import Input
from mlflow_trt.conversion import golden
from mlflow_trt.conversion.arguments import parse
from mlflow_trt.conversion.program import export, flatten
from mlflow_trt.conversion.structure import computed_outputs
from mlflow_trt.errors import ConversionError, SettingError

from .models import Cnn, Function, Nested, Two

BATCH = (1, 4, 8)


def computed(model, inputs, given=None, kwargs=None, **options):
    arguments = parse(model, inputs, kwargs)
    program = export(model, arguments)
    specs = flatten(program, arguments)
    return golden.compute(program, specs, computed_outputs(program, None), given, module=model, **options)


def test_points_of_every_profile_and_right_answers():
    model = Cnn().eval()
    tensors = computed(model, [Input(profiles=[((1, 1, 1), 3, 8, 8), ((2, 4, 8), 3, 8, 8)])])
    points = {(profile, point): (i["x"], o["output0"]) for profile, point, i, o in tensors.points()}
    assert set(points) == {(0, "opt"), (1, "min"), (1, "between"), (1, "opt"), (1, "max")}
    for (profile, point), (x, y) in points.items():
        assert x.shape[0] == {"opt": 1 if profile == 0 else 4, "min": 2, "between": 3, "max": 8}[point]
        with torch.no_grad():
            np.testing.assert_allclose(y, model(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_the_same_every_time():
    first, second = (computed(Cnn(), [Input((2, 3, 8, 8))]) for _ in range(2))
    assert np.array_equal(first.inputs["0.opt/x"], second.inputs["0.opt/x"])


def test_example_values_are_used():
    x = torch.arange(2 * 3 * 64.0).view(2, 3, 8, 8)
    assert np.array_equal(computed(Cnn(), [x]).inputs["0.opt/x"], x.numpy())


def test_golden_inputs_and_points_made_of_them():
    real = torch.full((3, 3, 8, 8), 5.0)
    tensors = computed(Cnn(), [Input(((1, 2, 8), 3, 8, 8))], [(real,), {"x": real[:1].numpy()}])
    assert {key.split("/")[0] for key in tensors.inputs} == {
        *("0.min", "0.opt", "0.max", "0.between"),
        *("0.user0", "0.user1"),
    }
    assert all((array == 5).all() for array in tensors.inputs.values())
    assert tensors.inputs["0.max/x"].shape[0] == 8


def test_several_inputs_by_argument():
    model = Nested()
    pair = {"m": Input((1, 3)), "n": Input((1, 3))}
    kwargs = {"ids": Input((2,), "int64"), "mask": Input((2, 6), "bool")}
    tensors = computed(model, [Input((2, 4)), pair], None, kwargs)
    values = {key.split("/")[1]: value for key, value in tensors.inputs.items()}
    assert set(values) == {"x", "pair_m", "pair_n", "ids", "mask"}
    assert set(np.unique(values["ids"])) <= set(range(8))  # of one_hot
    assert values["mask"].dtype == bool
    assert "0.opt/again.4" not in tensors.outputs  # a size that never changes is a constant of the manifest


def test_sizes():
    tensors = computed(Function(lambda x: (x + 1, x.shape[0])), [Input(((1, 2, 5), 4))])
    assert [tensors.outputs[f"0.{point}/output1"] for point in ("min", "opt", "max")] == [1, 2, 5]


def test_scalars_have_no_dimension():
    tensors = computed(Function(lambda x: x.sum()), [Input((2, 4))])
    assert tensors.outputs["0.opt/output0"].shape == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([(torch.zeros(9, 3, 8, 8),)], "within one optimization profile"),
        ([(torch.zeros(2), torch.zeros(2))], "holds 2"),
    ],
)
def test_golden_inputs_that_do_not_fit(given, words):
    with pytest.raises(SettingError, match=words):
        computed(Cnn(), [Input(((1, 2, 8), 3, 8, 8))], given)


def test_large_points_are_left_out(caplog):
    caplog.set_level(logging.INFO)
    tensors = computed(Cnn(), [Input(((1, 2, 800), 3, 8, 8))], limit=100_000)
    assert {key.split("/")[0] for key in tensors.inputs} == {"0.min", "0.opt"}
    assert "left out" in caplog.text


def test_half_precision_answers_are_float32():
    tensors = computed(nn.Linear(4, 4).bfloat16(), [Input((2, 4))])
    assert tensors.outputs["0.opt/output0"].dtype == np.float32


def test_model_that_fails_at_a_point():
    with pytest.raises(ConversionError, match="PyTorch itself fails at opt"):
        computed(
            Two(lambda a, b: torch.nn.functional.embedding(a, b[:1])),
            [Input((2,), "int64"), Input((4, 3))],
            [(torch.tensor([5, 5]), torch.zeros(4, 3))],
        )


@pytest.mark.parametrize(
    ("function", "shape", "words"),
    [
        (lambda x: x * 2 if x.shape[0] > 1 else x + 100, (BATCH, 6), r"dimension 0 of x: other answers at 1, the same"),
        (lambda x: x * 3 if x.shape[1] == 1 else x - 1, (2, BATCH), r"dimension 1 of x: other answers at 1, the same"),
        (lambda x: x + 1 if x.shape[1] % 4 == 0 else x - 9, (2, (4, 8, 16)), r"dimension 1 of x: other answers at 5"),
        (lambda x: x * 2 if x.shape[0] > 1 else x.argmax(1)[:, None], (BATCH, 6), r"has the shape"),
        (lambda x: (x + 1, "one" if x.shape[0] == 1 else "many"), (BATCH, 6), r"output1 is 'many' in place of 'one'"),
    ],
)
def test_code_that_depends_on_a_size_is_refused_with_the_sizes(function, shape, words):
    """The export keeps one branch, and an engine would answer by it at every size."""
    with pytest.raises(ConversionError, match=words) as caught:
        computed(Function(function), [Input(shape)])
    assert "depends on a size" in caught.value.found
    assert "torch.where" in caught.value.remedy


def test_what_to_convert_for_instead():
    with pytest.raises(ConversionError, match=r"x, dimension 0: from 3 on"):
        computed(Function(lambda x: x * 2 if x.shape[0] > 1 else x + 100), [Input((BATCH, 6))])


def test_one_size_of_several_dimensions():
    """Neither min, opt nor max has a sequence of 1 in a batch of more."""
    function = Function(lambda x: x - 1 if x.shape[1] == 1 and x.shape[0] > 1 else x + 1)
    with pytest.raises(ConversionError, match=r"x \[4, 1\]"):
        computed(function, [Input((BATCH, BATCH))])


def test_both_ways_come_to_the_same():
    """A guard that changes nothing is taken out: it would refuse right calls."""
    half = Function(lambda x: x[-(x.shape[0] // 2) :] * 2)
    arguments = parse(half, [Input(((2, 8, 64), 3))], None)
    program = export(half, arguments)
    specs = flatten(program, arguments)
    assert program._guards_code
    golden.compute(program, specs, computed_outputs(program, None), None, module=half)
    loaded = program.module()
    for rows in (2, 3, 8):
        assert torch.equal(loaded(torch.ones(rows, 3)), torch.full((rows // 2, 3), 2.0))


def test_multiples_that_the_model_itself_demands_are_no_reason_to_refuse():
    pairs = Function(lambda x: x.view(x.shape[0], x.shape[1] // 4, 4).sum(-1))
    tensors = computed(pairs, [Input((2, (4, 8, 16)))])
    assert tensors.inputs["0.between/x"].shape[1] % 4 == 0


def test_a_given_program_that_was_exported_for_other_sizes():
    even = Function(lambda x: x + 1 if x.shape[1] % 4 == 0 else x - 9)
    arguments = parse(even, [Input((2, (4, 8, 16)))], None)
    program = export(even, arguments)
    with pytest.raises(ConversionError, match=r"x\.shape\[1\] % 4.* x \[2, 5\]"):
        golden.compute(program, flatten(program, arguments), computed_outputs(program, None), None)


def test_random_answers_are_called_random():
    with pytest.raises(ConversionError, match="The model answers the same inputs differently"):
        computed(Function(lambda x: x + torch.rand_like(x)), [Input((BATCH, 4))])
    noisy = Function(lambda x: nn.functional.dropout(x, 0.5, True) + torch.randn(()))
    with pytest.raises(ConversionError, match="The model answers the same inputs differently"):
        computed(noisy, [Input((BATCH, 4))])


def test_random_program():
    program = torch.export.export(Function(lambda x: x + torch.rand_like(x)), (torch.zeros(2, 4),))
    arguments = parse(program, None, None)
    with pytest.raises(ConversionError, match="The exported program answers the same inputs differently"):
        golden.compute(program, flatten(program, arguments), computed_outputs(program, None), None)


class Remembering(nn.Module):
    """Keeps what it made; draws and throws away; writes into what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.cached = None
        self.register_buffer("table", torch.zeros(3))

    def forward(self, x):
        if not torch.compiler.is_exporting():
            self.cached = torch.rand(3)
            self.table.add_(1)
            self.norm.weight = nn.Parameter(self.norm.weight.clone())
            x += 0
        return self.norm(x)


def test_the_module_is_left_as_it_was():
    module = Remembering().train()
    weight, state = module.norm.weight, torch.get_rng_state()
    computed(module, [Input(((2, 4, 8), 4))])
    assert module.training
    assert module.norm.training
    assert module.cached is None
    assert module.norm.weight is weight
    assert module.table.tolist() == [0, 0, 0]
    assert module.norm.num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_rounds():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).bfloat16()
    tensors = computed(layer, [Input((BATCH, 5, 16))])
    assert tensors.inputs["0.opt/src"].dtype == np.float32


def test_padding_of_a_transformer():
    """PyTorch's fused path answers zeros where the mask says padding; the program, as any other path, does not."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    kwargs = {"src_key_padding_mask": Input((BATCH, (2, 6, 9)), "bool")}
    tensors = computed(encoder, [Input((BATCH, (2, 6, 9), 16))], None, kwargs)
    assert all(np.isfinite(array).all() for array in tensors.outputs.values())
    assert torch.backends.mha.get_fastpath_enabled()


class Embeddings(nn.Module):
    """As a BERT takes its inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.types, self.places = nn.Embedding(500, 4), nn.Embedding(2, 4), nn.Embedding(16, 4)

    def forward(self, input_ids, attention_mask, token_type_ids, position_ids):
        x = self.words(input_ids + 2) + self.types(token_type_ids.int()) + self.places(position_ids.view(-1))
        return (x * attention_mask[..., None]).sum(1)


def test_integers_are_what_the_model_reads_them_as():
    ids = Input((BATCH, (2, 8, 16)), "int64")
    tensors = computed(Embeddings(), [ids, ids, ids, Input(((2, 8, 16),), "int64")])
    values = {key.split("/")[1]: value for key, value in tensors.inputs.items() if key.startswith("0.max")}
    assert values["input_ids"].max() > 250
    assert 0 <= values["input_ids"].min() <= values["input_ids"].max() < 498
    assert set(np.unique(values["token_type_ids"])) == {0, 1}
    assert values["position_ids"].tolist() == list(range(16))
    mask = values["attention_mask"]
    assert (np.diff(mask, axis=1) <= 0).all()  # ones, then zeros
    assert (mask[:, 0] == 1).all()
    assert len(set(mask.sum(1))) > 2


def test_integers_of_a_domain_and_of_the_caller():
    arguments = parse(nn.Embedding(500, 4), [Input((2, 3), "int64")], None)
    program = export(nn.Embedding(500, 4), arguments)
    (name, spec) = next(iter(flatten(program, arguments).items()))
    narrow = {name: dataclasses.replace(spec, domain=(7, 9))}
    outputs = computed_outputs(program, None)
    made = golden.compute(program, narrow, outputs, None).inputs["0.opt/input"]
    assert set(np.unique(made)) <= {7, 8}
    given = golden.compute(program, {name: spec}, outputs, [(torch.full((2, 3), 5),)]).inputs["0.opt/input"]
    assert (given == 5).all()


def test_a_table_that_is_not_to_be_seen():
    """Hidden behind arithmetic: 0 and 1 where the range of the other table fails."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = nn.Embedding(500, 4), nn.Embedding(3, 4)

        def forward(self, ids):
            return self.large(ids) + self.small(ids * 2)

    assert computed(Hidden(), [Input((BATCH,), "int64")]).inputs["0.max/ids"].max() == 1
