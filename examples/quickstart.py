"""Trains a small network on real handwritten digits, logs it as an FP16 TensorRT engine, loads it back, and uses it.

    python examples/quickstart.py

Everything goes to a local MLflow in ``.demo/`` of the working directory. On a machine with an NVIDIA GPU the engine
answers; without one the engine is built all the same, and its logged program answers on the CPU instead.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import mlflow
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import mlflow_trt
from mlflow_trt.plan.manifest import Census

FOLDER = Path(".demo").resolve()
STORE = f"sqlite:///{FOLDER / 'mlflow.db'}"
LARGEST_BATCH = 128

console = Console(highlight=False)


class DigitsNet(nn.Module):
    """8×8 grey images in, ten logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def train(images: np.ndarray, labels: np.ndarray, epochs: int = 10) -> DigitsNet:
    torch.manual_seed(0)
    model = DigitsNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def batches(images: np.ndarray) -> list[np.ndarray]:
    """Slices that fit the engine's profile, the last one smaller: any batch size from 1 to the largest is fine."""
    return [images[i : i + LARGEST_BATCH] for i in range(0, len(images), LARGEST_BATCH)]


def step(text: str) -> None:
    console.print(f"[bold green]▸[/] {text}")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # a new SQLite store tells of its tables
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    mlflow.set_tracking_uri(STORE)
    if mlflow.get_experiment_by_name("digits") is None:
        mlflow.create_experiment("digits", artifact_location=(FOLDER / "artifacts").as_uri())
    mlflow.set_experiment("digits")

    digits = load_digits()
    pictures = (digits.images[:, None] / 16).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        pictures, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    start = time.perf_counter()
    model = train(train_x, train_y)
    with torch.inference_mode():
        torch_answers = model(torch.from_numpy(test_x)).numpy().argmax(1)
    step(f"Trained on {len(train_x)} real handwritten digits in {time.perf_counter() - start:.1f} s.")

    # From here on: the three calls that this package is about.
    start = time.perf_counter()
    info = mlflow_trt.log_model(
        model,
        name="digits",
        inputs=[mlflow_trt.Input(((1, 32, LARGEST_BATCH), 1, 8, 8))],
        precision="fp16",
        output_names=["logits"],
        registered_model_name="digits",
    )
    version = info.registered_model_version
    mlflow.MlflowClient().set_registered_model_alias("digits", "champion", str(version))
    seconds = time.perf_counter() - start
    step(f"Built an FP16 engine and logged it as [bold]digits[/] version {version} in {seconds:.1f} s.")

    uri = "models:/digits@champion"
    report = mlflow_trt.check(uri)
    backend = "tensorrt" if report.accepted else "reference"
    if report.accepted:
        step("This machine loads the engine.")
    else:
        reasons = {reason.found for _, verdict in report.passed_over() for reason in verdict.reasons}
        step(f"The engine does not load on this machine: {' '.join(sorted(reasons))}")
        step('So the script asks for [bold]backend="reference"[/]: the logged program, run by PyTorch on the CPU.')

    served = mlflow.pyfunc.load_model(uri, model_config={"backend": backend})
    results = [served.predict({"images": batch}) for batch in batches(test_x)]
    answers = np.concatenate([result["logits"].argmax(1) for result in results])
    answered_by = results[0].backend
    step(f"Classified {len(test_x)} held-out digits through mlflow.pyfunc; answered by: [bold]{answered_by}[/].")

    record = mlflow_trt.inspect(uri).plans[0]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    targets = ", ".join(record.capabilities or ()) or "this GPU"
    parity = record.parity
    who = {"tensorrt": "by the engine", "reference": "by PyTorch on the CPU, in FP32, with the logged program"}
    table = Table(title=f"digits, version {version}", title_style="bold", show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    table.add_row("accuracy, PyTorch FP32", f"{(torch_answers == test_y).mean():.2%}")
    table.add_row("accuracy, logged version", f"[bold]{(answers == test_y).mean():.2%}[/], {who[answered_by]}")
    table.add_row("same answers", f"{(answers == torch_answers).sum()} of {len(test_y)}")
    table.add_row("engine", f"{record.runtime} {record.release}\nfor compute capability {targets}")
    table.add_row("precision asked for", f"{record.precision.requested}")
    table.add_row("weights in the network", _bytes_by_dtype(record.precision.census))
    table.add_row("PyTorch weights, FP32", f"{weights / 1024:,.0f} KiB")
    table.add_row("plan", f"{record.file.size / 1024:,.0f} KiB")
    table.add_row(
        "parity with PyTorch", f"{parity.status.replace('_', ' ')}{f': {parity.reason}' if parity.reason else ''}"
    )
    console.print(table)
    console.print(f"Look at it:  [bold]mlflow ui --backend-store-uri {STORE}[/]", soft_wrap=True)


def _bytes_by_dtype(census: Census | None) -> str:
    if census is None:
        return "not known"
    return ", ".join(f"{size / 1024:,.0f} KiB {dtype}" for dtype, size in census.weight_bytes.items() if size >= 512)


if __name__ == "__main__":
    main()
