"""A version and an error, as they travel between the server's processes."""

from __future__ import annotations

from interfaces import interface, tensor

from mlflow_trt.plan.manifest import ShapeRange
from mlflow_trt.serving.error_parts import ErrorParts
from mlflow_trt.serving.served_model import ServedVersion

VERSION = ServedVersion(
    uri="models:/m/3",
    version="3",
    platform="tensorrt_rtx-1.6.1.120",
    interface=interface([tensor("x", ("n", 4))], [tensor("y", ("n", 1))]),
    profiles=({"x": ShapeRange(min=(1, 4), opt=(2, 4), max=(8, 4))},),
    mlmodel="flavors: {}",
)

ERROR = ErrorParts("BusyError", "It is full.", "room", "try again")
