"""Several inputs of several dtypes, a keyword argument, and outputs that nest, repeat, or are no tensors at all.

python examples/seeds/multiple_inputs_outputs.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import mlflow_trt


class Ranker(nn.Module):
    """Scores documents for a query."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 16)
        self.project = nn.Linear(16, 16)

    def forward(self, query: torch.Tensor, documents: torch.Tensor, *, keep: torch.Tensor) -> dict[str, Any]:
        scores = self.project(query) @ self.embedding(documents).transpose(0, 1)
        kept = torch.where(keep, scores, torch.zeros_like(scores))
        # TensorRT itself knows only distinct, computed tensors. The rest is put together again on the host.
        return {"scores": kept, "details": (scores, kept.mean(-1)), "again": kept, "query": query, "note": None}


torch.manual_seed(0)
model = Ranker().eval()
mlflow_trt.save_model(
    model,
    "ranker",
    inputs=[mlflow_trt.Input(((1, 2, 8), 16)), mlflow_trt.Input((5,), "int64")],
    kwarg_inputs={"keep": mlflow_trt.Input((5,), "bool")},
)
interface = mlflow_trt.inspect("ranker").interface
assert interface is not None
for kind, tensors in (("input", interface.inputs), ("output", interface.outputs)):
    for tensor in tensors:
        print(f"{kind} {tensor.name}: {tensor.dtype} {tensor.shape}")

query = np.random.default_rng(0).standard_normal((2, 16), dtype=np.float32)
documents, keep = np.array([3, 1, 4, 1, 5]), np.array([True, True, False, True, False])
backend = "tensorrt" if mlflow_trt.check("ranker").accepted else "reference"
with mlflow_trt.load_model("ranker", backend=backend) as engine:
    # The native call takes and returns the model's own structure ...
    answer = engine(query, documents, keep=keep)
    # ... and predict a dict of arrays by name, which is what mlflow.pyfunc serves.
    flat = engine.predict({"query": query, "documents": documents, "keep": keep})

print(f"engine(...) answers the keys {', '.join(answer)}; note is {answer['note']}")
print(f"engine.predict(...) answers {', '.join(flat)}, answered by {flat.backend}")
with torch.inference_mode():
    expected = model(torch.from_numpy(query), torch.from_numpy(documents), keep=torch.from_numpy(keep))
np.testing.assert_allclose(np.asarray(answer["scores"]), expected["scores"].numpy(), rtol=1e-2, atol=1e-2)
np.testing.assert_allclose(np.asarray(answer["details"][1]), expected["details"][1].numpy(), rtol=1e-2, atol=1e-2)
np.testing.assert_array_equal(np.asarray(answer["query"]), query)
print("Same values and structure as PyTorch.")
