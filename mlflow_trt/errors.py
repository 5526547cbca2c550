"""Every error this package raises on purpose.

One base class, so that ``except TrtError`` catches them all, and ``MlflowException`` above it, so that MLflow's scoring
server answers with the right status. Every message has three parts: what was found, what was expected, what to do.
"""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    DEADLINE_EXCEEDED,
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    INVALID_STATE,
    TEMPORARILY_UNAVAILABLE,
)


class TrtError(MlflowException):
    """Base of all errors of this package.

    Args:
        found: What is the case, in one sentence or a short table.
        expected: What should be the case.
        remedy: What the reader can do about it.
    """

    error_code_number = INTERNAL_ERROR

    def __init__(self, found: str, expected: str = "", remedy: str = "") -> None:
        self.found = found
        self.expected = expected
        self.remedy = remedy
        parts = [found]
        if expected:
            parts.append(f"Expected: {expected}")
        if remedy:
            parts.append(f"To do: {remedy}")
        super().__init__("\n".join(parts), error_code=self.error_code_number)

    def __reduce__(self) -> tuple[type[TrtError], tuple[str, str, str]]:
        """Pickles by its three parts: errors cross process borders (the building child, test workers)."""
        return type(self), (self.found, self.expected, self.remedy)


class InputError(TrtError):
    """A call's inputs do not fit the engine: name, dtype, rank, or a size outside the optimization profile."""

    error_code_number = BAD_REQUEST


class SettingError(TrtError):
    """An argument or compilation setting is unknown or has a value that can't be honoured."""

    error_code_number = INVALID_PARAMETER_VALUE


class ConversionError(TrtError):
    """The model could not be exported, or TensorRT could not build an engine from it."""

    error_code_number = INVALID_PARAMETER_VALUE


class ConverterError(ConversionError):
    """A converter, or TensorRT on what it made, failed on this model; another converter may take it."""


class UnsupportedOperatorError(ConversionError):
    """The model holds operators that no converter takes; ``operators`` lists them."""

    def __init__(self, found: str, expected: str = "", remedy: str = "", operators: tuple[str, ...] = ()) -> None:
        self.operators = operators
        super().__init__(found, expected, remedy)

    def __reduce__(self) -> tuple[type[TrtError], tuple[str, str, str, tuple[str, ...]]]:  # type: ignore[override]
        return type(self), (self.found, self.expected, self.remedy, self.operators)


class PrecisionError(ConversionError):
    """The built network does not have the precision that was asked for."""


class ParityError(TrtError):
    """The engine's outputs differ from the model's own by more than the tolerance."""

    error_code_number = INVALID_STATE


class PlanError(TrtError):
    """A plan's bytes are damaged, cut short, or not a TensorRT engine at all."""

    error_code_number = INVALID_STATE


class ManifestError(TrtError):
    """A manifest is missing, malformed, of a newer format, or disagrees with the files beside it."""

    error_code_number = INVALID_STATE


class CompatibilityError(TrtError):
    """No plan of the model loads on this host; the message names every plan with its reasons."""

    error_code_number = INVALID_STATE


class DeviceError(TrtError):
    """The GPU, its driver or its memory refused: no driver, no such device, out of memory, a failed CUDA call."""


class StoreError(TrtError):
    """A model could not be read from or written to its artifact store or registry."""


class PromotionError(TrtError):
    """An alias can't be moved: no such version, nothing to go back to, or somebody else moved it first."""

    error_code_number = INVALID_STATE


class BusyError(TrtError):
    """A served model can't take the call now: its queue is full, it is not loaded yet, or the server is ending."""

    error_code_number = TEMPORARILY_UNAVAILABLE


class DeadlineError(TrtError):
    """A call was not answered within the time that it had."""

    error_code_number = DEADLINE_EXCEEDED
