"""A refittable engine (``immutable_weights=False``): its weights can be replaced without building it again.

    python examples/seeds/refittable.py

Building one needs a GPU; elsewhere this prints the refusal.
"""

from __future__ import annotations

import importlib

import numpy as np
import torch
from torch import nn

import mlflow_trt

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
inputs = [mlflow_trt.Input((8, 64))]

try:
    plan = mlflow_trt.convert(model, inputs, immutable_weights=False)
except mlflow_trt.TrtError as error:
    print(f"Not built:\n{error}")
    raise SystemExit(1 if torch.cuda.is_available() else 0) from None

print(f"Refittable, as the manifest says: {plan.record.refittable}")
trt = importlib.import_module(plan.record.runtime)
logger = trt.Logger(trt.Logger.WARNING)
runtime = trt.Runtime(logger)
engine = runtime.deserialize_cuda_engine(plan.serialized)
refitter = trt.Refitter(engine, logger)
names = refitter.get_all_weights()
print(f"Weights that can be replaced: {', '.join(names)}")
new = {}  # TensorRT keeps no copy: these live until the refit is done
for name in names:  # all to zero, to see that it takes effect; a real use gives the newly trained values
    prototype = refitter.get_weights_prototype(name)
    new[name] = np.zeros(prototype.size, trt.nptype(prototype.dtype))
    assert refitter.set_named_weights(name, trt.Weights(new[name]))
assert refitter.refit_cuda_engine()
print("Refitted.")
