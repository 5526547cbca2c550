"""Dynamic shapes: the sizes an engine takes, and what happens outside them.

python examples/seeds/dynamic_shapes.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import mlflow_trt


def dynamic_batch() -> Any:
    """A batch of 1 to 32, tuned for 8."""
    if torch.cuda.is_available():  # importing torch_tensorrt needs a GPU
        import torch_tensorrt

        return torch_tensorrt.Input(min_shape=(1, 64), opt_shape=(8, 64), max_shape=(32, 64), dtype=torch.float32)
    return mlflow_trt.Input(((1, 8, 32), 64))  # says the same, anywhere


model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
spec = dynamic_batch()
print(f"Input: {type(spec).__module__.split('.')[0]}.{type(spec).__name__}")
mlflow_trt.save_model(model, "dynamic", inputs=[spec], output_names=["logits"])
manifest = mlflow_trt.inspect("dynamic")
assert manifest.interface is not None
name = manifest.interface.inputs[0].name
print(f"In the manifest: {name} {manifest.interface.inputs[0].shape}, {manifest.plans[0].profiles[0][name]}")

backend = "tensorrt" if mlflow_trt.check("dynamic").accepted else "reference"
with mlflow_trt.load_model("dynamic", backend=backend) as engine:
    for batch in (1, 8, 32):
        result = engine.predict({name: np.zeros((batch, 64), np.float32)})
        print(f"Batch {batch}: logits {result['logits'].shape}, answered by {result.backend}")
    try:
        engine.predict({name: np.zeros((33, 64), np.float32)})
    except mlflow_trt.InputError as error:
        print(f"Batch 33 is refused before it reaches the GPU:\n{error}")
