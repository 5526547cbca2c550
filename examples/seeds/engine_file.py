"""A plan is a raw serialized engine: written to a file, read back, and run by TensorRT without this package.

python examples/seeds/engine_file.py
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import nn

import mlflow_trt
from mlflow_trt.plan.files import read_header

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
plan = mlflow_trt.convert(model, [mlflow_trt.Input(((1, 8, 32), 64))], output_names=["logits"])

# Out: the bytes are what TensorRT returned. `trtexec --loadEngine=mlp.engine` or a C++ program takes them as they are.
path = plan.save(Path("mlp.engine"))
serialized = path.read_bytes()
assert serialized == plan.serialized
header = read_header(serialized)  # needs no TensorRT and no GPU
print(f"Wrote {path}: {len(serialized):,} bytes, {header.runtime} {header.release}")
print(f"Built for compute capabilities: {', '.join(header.capabilities or ('only the GPU that built it',))}")

# And an engine file from elsewhere is logged the same way; what its header says becomes the manifest.
mlflow_trt.save_model(path, "mlp-from-file")
record = mlflow_trt.inspect("mlp-from-file").plans[0]
print(f"Saved the file as an MLflow model: {record.file.path}, parity {record.parity.status}")

# Back: only on a GPU. Without one TensorRT cannot deserialize an engine, and some releases crash when asked to.
if not torch.cuda.is_available():
    print("No GPU here, so the engine is not deserialized.")
    raise SystemExit
trt = importlib.import_module(header.runtime)  # tensorrt_rtx or tensorrt: one API
runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
engine = runtime.deserialize_cuda_engine(serialized)
if engine is None:  # TensorRT's way to say no; the reason is on its logger
    raise SystemExit("TensorRT refused the engine.")
names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
x_name = next(n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
y_name = next(n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)
x, y = torch.randn(4, 64, device="cuda"), torch.empty(4, 10, device="cuda")
context = engine.create_execution_context()
for accepted in (
    context.set_input_shape(x_name, tuple(x.shape)),
    context.set_tensor_address(x_name, x.data_ptr()),
    context.set_tensor_address(y_name, y.data_ptr()),
    context.execute_async_v3(torch.cuda.current_stream().cuda_stream),
):
    assert accepted
torch.cuda.synchronize()
difference = (y.cpu() - model(x.cpu())).abs().max().item()
print(f"trt.Runtime ran the file; largest difference to PyTorch: {difference:.1e}")
