# ruff: noqa: E402
"""What integers and booleans are for: read off the program, and told by a name."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

import numpy as np
from torch import nn

from mlflow_trt import Input

from .programs import computed

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
