# ruff: noqa: E402
"""What integers and booleans are for: read off the program, and told by a name."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

import numpy as np
from torch import nn

from mlflow_trt import Input
from mlflow_trt.conversion.roles import Role, roles

from .models import Function, Two
from .programs import computed, exported

BATCH = (1, 4, 8)


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


def test_a_table_that_is_not_to_be_seen():
    """Hidden behind arithmetic: 0 and 1 where the range of the other table fails."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = nn.Embedding(500, 4), nn.Embedding(3, 4)

        def forward(self, ids):
            return self.large(ids) + self.small(ids * 2)

    assert computed(Hidden(), [Input((BATCH,), "int64")]).inputs["0.max/ids"].max() == 1


TABLE = torch.arange(40.0).view(10, 4)


@pytest.mark.parametrize(
    ("read", "rows"),
    [
        (lambda ids: nn.functional.embedding(ids, TABLE), 10),
        (lambda ids: TABLE[ids], 10),
        (lambda ids: TABLE.index_select(0, ids.view(-1)), 10),
        (lambda ids: TABLE.index_select(1, ids.view(-1)), 4),
        (lambda ids: TABLE.index_select(-1, ids.view(-1)), 4),
        (lambda ids: TABLE.gather(1, ids[:, :1]), 4),
        (lambda ids: nn.functional.one_hot(ids, 7), 7),
        (lambda ids: TABLE[ids + 3], 7),
        (lambda ids: TABLE[ids - 3], 13),
        (lambda ids: TABLE[ids.flatten().unsqueeze(0).int()], 10),
        (lambda ids: TABLE[torch.cat([ids, ids + 2])], 8),
        (lambda ids: TABLE[ids].sum() + TABLE[:6][ids].sum(), 6),  # the smaller table counts
    ],
)
def test_rows_of_the_table_that_is_read(read, rows):
    program, specs = exported(Function(read), [Input((2, 3), "int64")])
    assert roles(program, specs) == {"x": Role("indices", rows)}


@pytest.mark.parametrize(
    "read",
    [
        lambda ids: TABLE[ids * 2],  # arithmetic that is not followed
        lambda ids: ids.float(),
        lambda ids: TABLE[:, :2] * ids[:1, :1],
        lambda ids: TABLE[: ids.shape[0]],
    ],
)
def test_what_reads_no_table_has_no_role(read):
    program, specs = exported(Function(read), [Input((2, 3), "int64")])
    assert roles(program, specs) == {}


class Named(nn.Module):
    """An input of each kind of name."""

    def forward(self, attention_mask, key_padding_mask, pos, position_ids, masked_lm_labels, opposite):
        return attention_mask.sum() + key_padding_mask.sum() + pos.sum() + position_ids + masked_lm_labels + opposite


def test_names_that_say_what_they_are():
    program, specs = exported(Named(), [Input((2, 3), "int64")] * 6)
    assert {name: role.kind for name, role in roles(program, specs).items()} == {
        "attention_mask": "mask",
        "key_padding_mask": "padding",
        "pos": "positions",
        "position_ids": "positions",
    }


@pytest.mark.parametrize(("dtype", "known"), [("int64", True), ("bool", True), ("float32", False)])
def test_a_companion_of_indices_with_their_shape_is_a_mask(dtype, known):
    companion = Two(lambda a, b: (TABLE[a] * b[..., None]).sum())
    program, specs = exported(companion, [Input((2, 3), "int64"), Input((2, 3), dtype)])
    assert roles(program, specs) == {"a": Role("indices", 10), **({"b": Role("mask")} if known else {})}
