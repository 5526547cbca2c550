"""Conversion: a module or exported program becomes a plan.

The way through, one file each: :mod:`.arguments` (what the caller said of the inputs), :mod:`.program` (module →
exported program, what an engine can't hold), :mod:`.shapes` (the sizes that it holds for), :mod:`.structure` (which
outputs are computed, how they nest), :mod:`.golden` (what PyTorch answers), :mod:`.precision` (the program that goes
into the network, in a graph of :mod:`.typed_graph`), :mod:`.settings` (Torch-TensorRT's own), :mod:`.job` (what is to
be built), :mod:`.converters` (who builds it), :mod:`.torch_tensorrt` (the call into Torch-TensorRT), :mod:`.onnx` and
:mod:`.onnx_parser` (the other way, by a graph in ONNX), :mod:`.network` (what was built), :mod:`.cpu_only` and
:mod:`.build_child` (both in a process of their own, where there is no GPU), :mod:`.interface` (what the manifest says
of it).

Importing this package does not import Torch-TensorRT, which needs a GPU at import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core import convert as convert

__all__ = ["convert"]


def __getattr__(name: str) -> Any:
    # Lazily: the building child is a module of this package, and must come before torch's first use.
    if name == "convert":
        try:
            from .core import convert
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            from ..errors import SettingError

            raise SettingError(
                "torch is not installed, and converting a PyTorch model needs it.",
                "the conversion extra, or a graph in ONNX, which needs no torch",
                'pip install "mlflow-trt[convert-rtx]" (or "mlflow-trt[convert]" for the full TensorRT)',
            ) from error
        return convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
