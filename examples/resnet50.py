"""ResNet-50 in FP16 through mlflow.pyfunc, timed at two batch sizes.

    python examples/resnet50.py

The weights are random: speed does not depend on them. ``python -m benchmarks`` measures the same model against other
ways to run it; this is the short version.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import mlflow
import numpy as np
from models import resnet50

import mlflow_trt


def main() -> None:
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    folder = Path(".demo").resolve()
    folder.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    if mlflow.get_experiment_by_name("resnet50") is None:
        mlflow.create_experiment("resnet50", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("resnet50")

    start = time.perf_counter()
    info = mlflow_trt.log_model(
        resnet50(),
        name="resnet50",
        inputs=[mlflow_trt.Input(((1, 8, 32), 3, 224, 224), name="images")],
        precision="fp16",
        output_names=["logits"],
    )
    record = mlflow_trt.inspect(info.model_uri).plans[0]
    print(f"Converted and logged in {time.perf_counter() - start:.1f} s; plan: {record.file.size / 1e6:.1f} MB")

    report = mlflow_trt.check(info.model_uri)
    backend = "tensorrt" if report.accepted else "reference"
    model = mlflow.pyfunc.load_model(info.model_uri, model_config={"backend": backend})
    for batch in (1, 8):
        images = {"images": np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)}
        # Without a GPU the program runs on the CPU: three calls are enough to see that it answers.
        warm_up, runs = (10, 200) if backend == "tensorrt" else (1, 3)
        for _ in range(warm_up):
            result = model.predict(images)
        seconds = []
        for _ in range(runs):
            begin = time.perf_counter()
            result = model.predict(images)
            seconds.append(time.perf_counter() - begin)
        median = statistics.median(seconds)
        print(
            f"Batch {batch}: {median * 1000:.2f} ms a call, {batch / median:,.0f} images a second, "
            f"answered by {result.backend} ({report.host.gpu or 'CPU'})"
        )


if __name__ == "__main__":
    main()
