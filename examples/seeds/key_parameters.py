"""Torch-TensorRT's own settings, passed through by name; a misspelt one is refused instead of ignored.

python examples/seeds/key_parameters.py
"""

from __future__ import annotations

from torch import nn

import mlflow_trt

SETTINGS = {
    "disable_tf32": True,  # float32 products in full float32
    "optimization_level": 5,  # how long the builder searches (0 to 5)
    "hardware_compatible": True,  # full TensorRT: also loads on Ampere and newer
    "version_compatible": True,  # full TensorRT: also loads on later releases
    "workspace_size": 1 << 28,  # bytes of scratch memory that a layer may use
    "num_avg_timing_iters": 2,  # timings that the builder averages
    "immutable_weights": True,  # False: refittable, see refittable.py
}

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
plan = mlflow_trt.convert(model, [mlflow_trt.Input(((1, 8, 32), 64))], precision="fp32", **SETTINGS)
print("In the manifest:")
for name in SETTINGS:
    print(f"  {name} = {plan.record.settings[name]}")
print(f"TF32 allowed in the network: {plan.record.precision.census.tf32}")

try:
    mlflow_trt.convert(model, [mlflow_trt.Input((1, 64))], optimisation_level=5)
except mlflow_trt.SettingError as error:
    print(f"Refused:\n{error}")
