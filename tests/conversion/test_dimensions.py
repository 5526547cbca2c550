# ruff: noqa: E402
"""Which dimensions of the inputs are one, and what they are called: from the export, from names, and by default."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch import nn
from torch.export import Dim

from mlflow_trt import Input
from mlflow_trt.conversion import golden
from mlflow_trt.conversion.arguments import parse
from mlflow_trt.conversion.dimensions import refuse_unequal, symbols
from mlflow_trt.conversion.program import export, flatten, placeholder_values
from mlflow_trt.conversion.shapes import check_shapes
from mlflow_trt.conversion.structure import computed_outputs
from mlflow_trt.errors import ConversionError, SettingError

from .models import Function, Nested, Two

B = (1, 4, 8)


class Pooled(nn.Module):
    """Nothing ties the rows of the mask to those of the tokens: they are looked up by index, as transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 4)

    def forward(self, ids, mask):
        rows = torch.arange(ids.shape[0])[:, None]
        weights = mask[rows, torch.arange(ids.shape[1])[None]][..., None].float()
        return (self.embed(ids) * weights).sum(1) / weights.sum(1).clamp(min=1)


class Three(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, a, b, c):
        return self.function(a, b, c)


def exported(model, inputs, kwargs=None):
    given = parse(model, inputs, kwargs)
    program = model if isinstance(model, torch.export.ExportedProgram) else export(model, given)
    specs = flatten(program, given)
    check_shapes(program, specs)
    return program, specs


def shapes(model, inputs, kwargs=None):
    program, specs = exported(model, inputs, kwargs)
    found = symbols(program, specs)
    values = placeholder_values(program)
    return {name: found.shape(values[name]) for name in specs}


def firsts(model, inputs):
    return [shape[0] for shape in shapes(model, inputs).values()]


@pytest.mark.parametrize("length", [6, (2, 8, 16)])
def test_ids_and_mask_are_one_batch(length):
    ids, mask = shapes(Pooled(), [Input((B, length), "int64")] * 2).values()
    assert ids[0] == mask[0] == "batch"


def test_other_dimensions_are_one_only_if_the_export_proves_it():
    """A mask that is longer than the tokens is one that this model takes."""
    ids, mask = shapes(Pooled(), [Input((B, (2, 8, 16)), "int64")] * 2).values()
    assert (ids[1], mask[1]) == ("s0", "s1")
    added = shapes(Two(torch.add), [Input((B, (2, 8, 16)))] * 2)
    assert set(added.values()) == {("batch", "s0")}


def test_what_is_taken_for_one_batch_is_told(caplog):
    with caplog.at_level(logging.INFO, logger="mlflow_trt"):
        shapes(Pooled(), [Input((B, 6), "int64")] * 2)
    assert "The first dimensions of ids and mask are taken for one batch" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="mlflow_trt"):
        shapes(Two(torch.add), [Input((B, 6))] * 2)
        shapes(Pooled(), [Input((("n", *B), 6), "int64")] * 2)
    assert "taken for one batch" not in caplog.text


APART = {
    "similarities": lambda a, b: a @ b.T,
    "similarities on the way": lambda a, b: (a @ b.T).softmax(-1) @ b,
    "rows below others": lambda a, b: torch.cat([a, b]).sum(0),
}


@pytest.mark.parametrize("case", APART)
def test_what_the_program_holds_apart_is_two_batches(case):
    assert firsts(Two(APART[case]), [Input((B, 3))] * 2) == ["batch", "s0"]


def test_what_nothing_ties_is_one_batch_and_what_it_meets_is_another():
    """Images, tokens and a mask of a model that compares them all."""

    def compared(images, ids, mask):
        rows = torch.arange(ids.shape[0])
        return images @ (ids * mask[rows]).T

    two = ["batch", "s0", "s1"]  # nothing says to which of the two the mask belongs
    assert firsts(Three(compared), [Input((B, 3))] * 3) == two
    texts = Input((("texts", *B), 3))
    assert firsts(Three(compared), [Input((B, 3)), texts, texts]) == ["batch", "texts", "texts"]


def test_a_multiple_of_the_batch_is_an_expression():
    model = Two(lambda a, b: a.repeat(2, 1) + b)
    sizes = shapes(model, [Input((B, 3)), Input(((2, 8, 16), 3))])
    assert sorted(map(str, (s[0] for s in sizes.values()))) in (["2*batch", "batch"], ["batch", "batch//2"])


def test_unequal_ranges_are_apart():
    assert firsts(Pooled(), [Input((B, 6), "int64"), Input(((1, 4, 16), 6), "int64")]) == ["batch", "s0"]
    profiles = [Input(profiles=[((1, 1, 2), 6), ((4, 8, n), 6)], dtype="int64") for n in (16, 32)]
    assert firsts(Pooled(), profiles) == ["batch", "s0"]
    assert firsts(Pooled(), [profiles[0]] * 2) == ["batch", "batch"]


def test_several_inputs_nested_and_by_keyword():
    found = shapes(
        Nested(),
        [Input((B, 4)), {"m": Input(((1, 2, 4), 3)), "n": Input(((1, 2, 4), 3))}],
        {"flag": True, "ids": Input((B,), "int64"), "mask": Input((B, 6), "bool")},
    )
    assert {name: shape[0] for name, shape in found.items()} == {
        **dict.fromkeys(("x", "ids", "mask"), "batch"),
        **dict.fromkeys(("pair_m", "pair_n"), "s0"),
    }


def test_a_static_program_has_no_symbols():
    assert shapes(Two(torch.add), [Input((4, 3))] * 2) == {"a": (4, 3), "b": (4, 3)}


# --- names that the caller gives ---


def test_names_join_and_keep_apart():
    ids = Input((("texts", *B), ("tokens", 2, 8, 16)), "int64")
    assert shapes(Pooled(), [ids, ids]) == dict.fromkeys(("ids", "mask"), ("texts", "tokens"))
    other = Input((("masks", *B), (2, 8, 16)), "int64")
    assert shapes(Pooled(), [ids, other]) == {"ids": ("texts", "tokens"), "mask": ("masks", "s0")}


def test_a_named_batch_takes_the_unnamed_along():
    named, plain = Input((("rows", *B), 6), "int64"), Input((B, 6), "int64")
    for inputs in ([named, plain], [plain, named]):
        assert firsts(Pooled(), inputs) == ["rows", "rows"]


def test_the_unnamed_stays_alone_between_two_names():
    inputs = [Input((("rows", *B), 3)), Input((("columns", *B), 3)), Input((B, 3))]
    assert firsts(Three(lambda a, b, c: (a * 2, b * 2, c * 2)), inputs) == ["rows", "columns", "s0"]


def test_a_name_outweighs_what_the_program_holds_apart():
    square = Input((("n", *B), 3))
    assert firsts(Two(lambda a, b: a @ b.T), [square, square]) == ["n", "n"]


def test_a_name_that_is_taken_is_not_given_again():
    found = shapes(Two(lambda a, b: (a * 2, b * 2)), [Input((B, ("batch", 2, 3, 4))), Input((("s0", 1, 2, 3), 3))])
    assert found == {"a": ("s1", "batch"), "b": ("s0", 3)}


def test_one_name_for_two_dimensions_of_an_input():
    assert shapes(Function(lambda x: x * 2), [Input((("n", 2, 3, 4), ("n", 2, 3, 4)))]) == {"x": ("n", "n")}


def test_names_that_differ_where_the_export_proves_them_equal():
    with pytest.raises(SettingError, match=r"dimension 0 of a \('rows'\) and .* 0 of b \('columns'\)") as caught:
        shapes(Two(torch.add), [Input((("rows", *B), 3)), Input((("columns", *B), 3))])
    assert caught.value.remedy


def test_a_name_for_what_follows_from_another_size():
    model = Two(lambda a, b: a.repeat(2, 1) + b)
    with pytest.raises(SettingError, match=r"size follows from others: it is .* in the exported program"):
        shapes(model, [Input((("n", *B), 3)), Input((("m", 2, 8, 16), 3))])


def test_a_named_dimension_that_the_export_fixed():
    with pytest.raises(ConversionError, match=r"Dimension 0 \(rows\) of the input x is fixed to 4"):
        shapes(Function(lambda x: x + torch.ones(4, 3)), [Input((("rows", *B), 3))])


UNEQUAL = {
    "two inputs": ([Input((("n", *B), 3)), Input((("n", 1, 4, 16), 3))], r"0 of a and .* 0 of b .* 1:4:8 and 1:4:16"),
    "another opt": ([Input((("n", *B), 3)), Input((("n", 1, 2, 8), 3))], "both named 'n'"),
    "two places": ([Input((("n", *B), 3)), Input((2, ("n", 2, 3, 4)))], "dimension 1 of b"),
    "in one profile": (
        [Input(profiles=[(("n", 1), 3), ((2, 4, n), 3)]) for n in (8, 16)],
        "1:1:1; 2:4:8 and 1:1:1; 2:4:16",
    ),
    "one profile and two": (
        [Input((("n", 1, 4, 8), 3)), Input(profiles=[(("n", 1), 3), ((2, 4, 8), 3)])],
        "both named",
    ),
    "nested": ({"m": Input((("n", *B), 3)), "n": Input((("n", 1, 2, 8), 3))}, r"x\['m'\] and .* of x\['n'\]"),
}


@pytest.mark.parametrize("case", UNEQUAL)
def test_one_name_with_two_ranges(case):
    inputs, words = UNEQUAL[case]
    model = Function(None) if isinstance(inputs, dict) else Two(None)
    with pytest.raises(SettingError, match=words) as caught:
        parse(model, [inputs] if isinstance(inputs, dict) else inputs, None)
    assert caught.value.expected


def _foreign(low, opt, high, names):
    """A torch_tensorrt.Input: the package can't be imported without a GPU."""
    shape = {"min_shape": low, "opt_shape": opt, "max_shape": high}
    return SimpleNamespace(
        shape_mode="DYNAMIC", shape=shape, dtype=SimpleNamespace(name="i64"), name="", shared_dims=names
    )


def test_shared_dims_of_torch_tensorrt():
    ids = _foreign((1, 6), (4, 6), (8, 6), {0: "texts", 1: "fixed"})
    assert shapes(Pooled(), [ids, ids]) == dict.fromkeys(("ids", "mask"), ("texts", 6))
    with pytest.raises(SettingError, match="named 'a b'"):
        parse(Pooled(), [_foreign((1, 6), (4, 6), (8, 6), {0: "a b"})] * 2, None)


# --- names that torch.export was given ---


def _program(first, second, strict=False):
    given = tuple(torch.zeros(4, 6, dtype=torch.int64) for _ in range(2))  # one tensor twice has one size
    return torch.export.export(Pooled(), given, dynamic_shapes={"ids": {0: first}, "mask": {0: second}}, strict=strict)


@pytest.mark.parametrize("strict", [False, True])
def test_names_of_an_exported_program(strict):
    plain = [Input((B, 6), "int64")] * 2
    texts, masks = Dim("texts", min=1, max=8), Dim("masks", min=1, max=8)
    assert firsts(_program(texts, masks, strict), plain) == ["texts", "masks"]
    assert firsts(_program(texts, Dim.AUTO, strict), plain) == ["texts", "texts"]
    assert firsts(_program(Dim.AUTO, Dim.AUTO, strict), plain) == ["batch", "batch"]


def test_an_inputs_name_outweighs_the_programs():
    program = _program(Dim("texts", min=1, max=8), Dim("masks", min=1, max=8))
    assert firsts(program, [Input((("n", *B), 6), "int64")] * 2) == ["n", "n"]
    assert firsts(program, [Input((("masks", *B), 6), "int64"), Input((B, 6), "int64")]) == ["masks", "masks"]


# --- the caller's own golden inputs ---


def test_golden_inputs_of_two_batches_are_refused():
    program, specs = exported(Pooled(), [Input((B, 6), "int64")] * 2)
    names = symbols(program, specs)
    wanted = {name: names.shape(value) for name, value in placeholder_values(program).items() if name in specs}
    given = [{"ids": torch.ones(2, 6, dtype=torch.int64), "mask": torch.ones(3, 6, dtype=torch.int64)}]
    with pytest.raises(
        SettingError, match=r"golden_inputs\[0\]: .*'mask' .* 3 in dimension 0 \(batch\), and 'ids' has 2"
    ):
        golden.compute(program, specs, computed_outputs(program, None), given, shapes=wanted)


def test_values_of_another_rank_are_left_to_others():
    refuse_unequal({"a": ("n", 3), "b": ("n",)}, {"a": (2,), "b": (4,)}, "golden_inputs[0]")
