"""What every benchmark gets: where its models are, how much time it has, and whether there is a GPU."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_trt.plan.host import probe

from .record import NotMeasured

ROOT = Path(__file__).resolve().parent.parent

# name → batch sizes (min, opt, max), the rest of the input's shape, precision
MODELS: dict[str, tuple[tuple[int, int, int], tuple[int, ...], str]] = {
    "resnet50": ((1, 8, 32), (3, 224, 224), "fp16"),
    "resnet50_other": ((1, 8, 32), (3, 224, 224), "fp16"),
    "resnet50_uint8": ((1, 8, 32), (3, 224, 224), "fp16"),
    "mlp": ((1, 8, 32), (64,), "fp32"),
}


@dataclass
class Context:
    """One benchmark's surroundings, in its own process."""

    work: Path
    """Holds the models that benchmarks share, and caches."""
    quick: bool
    budget: float
    """Seconds that this benchmark may take."""
    started: float = field(default_factory=time.monotonic)

    def deadline(self, share: float = 1.0) -> float:
        """``time.monotonic()`` at which a share of the budget is used up; the last tenth is kept for writing."""
        return self.started + self.budget * 0.9 * share

    def several(self, full: int, quick: int) -> int:
        """A number of repetitions."""
        return quick if self.quick else full

    def need_gpu(self) -> None:
        """Ends the benchmark where there is no GPU.

        Raises:
            NotMeasured: There is none.
        """
        if not has_gpu():
            raise NotMeasured("no GPU")

    def model(self, name: str) -> Path:
        """Returns the folder of a saved model, converted once for all benchmarks of a run."""
        folder = self.work / "models" / name
        if not folder.exists():
            # In a folder of its own first: a conversion that ends half way must not look like a model.
            unfinished = folder.with_name(f"{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            save(name, unfinished)
            unfinished.rename(folder)
        return folder


def has_gpu() -> bool:
    """Whether this machine has a GPU that CUDA can use."""
    return probe().gpu is not None


def module(name: str) -> Any:
    """Returns one of the benchmarks' PyTorch networks; imports torch."""
    sys.path.insert(0, str(ROOT / "examples"))
    import models

    return getattr(models, name)()


def conversion(name: str) -> dict[str, Any]:
    """Returns the arguments that convert it."""
    import mlflow_trt

    batch, rest, precision = MODELS[name]
    return {
        "inputs": [mlflow_trt.Input((batch, *rest), input_dtype(name), input_name(name))],
        "precision": precision,
        "output_names": ["logits"],
    }


def save(name: str, folder: Path) -> None:
    """Converts and saves a model; on a GPU with parity, latency and a runtime cache."""
    import mlflow_trt

    mlflow_trt.save_model(module(name), folder, **conversion(name))


def input_name(name: str) -> str:
    """The name of a model's one input."""
    return "images" if name.startswith("resnet50") else "x"


def input_dtype(name: str) -> str:
    """The dtype of a model's one input."""
    return "uint8" if name.endswith("uint8") else "float32"


def arrays(name: str, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random inputs for a model."""
    _, rest, _ = MODELS[name]
    random = np.random.default_rng(seed)
    if input_dtype(name) == "uint8":
        return {input_name(name): random.integers(0, 256, (batch, *rest), np.uint8)}
    return {input_name(name): random.standard_normal((batch, *rest), dtype=np.float32)}


def close(one: np.ndarray, other: np.ndarray, rel_l2: float = 2e-2) -> bool:
    """Whether two answers are the same, up to FP16 rounding: a fast wrong answer is no result."""
    return bool(np.linalg.norm(one - other) <= rel_l2 * np.linalg.norm(other))
