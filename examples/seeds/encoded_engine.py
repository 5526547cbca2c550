"""Torch-TensorRT's own way to hand engines around: base64 text, through ``get_engine_from_encoded_engine``.

python examples/seeds/encoded_engine.py
"""

from __future__ import annotations

import base64

import torch
from torch import nn

import mlflow_trt
from mlflow_trt.plan.files import read_header

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
plan = mlflow_trt.convert(model, [mlflow_trt.Input(((1, 8, 32), 64))])

encoded = base64.b64encode(plan.serialized).decode("ascii")
print(f"{len(plan.serialized):,} bytes of plan are {len(encoded):,} characters of base64")
header = read_header(base64.b64decode(encoded))
print(f"The text holds an engine of {header.runtime} {header.release}")

if not torch.cuda.is_available():
    print("No GPU here: torch_tensorrt can't be imported, so the engine is not deserialized.")
    raise SystemExit
import torch_tensorrt  # noqa: E402, F401, I001 (needs a GPU; puts TensorRT-RTX in place as `tensorrt`)
import tensorrt as trt  # noqa: E402
from torch_tensorrt.dynamo._refit import get_engine_from_encoded_engine  # noqa: E402

engine = get_engine_from_encoded_engine(encoded, trt.Runtime(trt.Logger(trt.Logger.WARNING)))
names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
print(f"get_engine_from_encoded_engine returned an engine with the tensors {', '.join(names)}")
