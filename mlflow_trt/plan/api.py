"""What an engine is to its callers, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np

from .manifest import Interface, Profile

Backend = Literal["tensorrt", "reference"]


class Result(dict[str, np.ndarray]):
    """The outputs of one call by name, and who computed them.

    A plain dict to everything that takes one (MLflow's scoring server too); pickles and copies with its attributes.
    """

    backend: Backend
    """``"tensorrt"``, or ``"reference"`` for the logged program run by PyTorch or ONNX Runtime."""
    plan: str | None
    """SHA-256 of the plan that answered; None: no plan did."""
    profile: int | None
    """Index of the optimization profile that was used."""

    def __init__(
        self,
        outputs: Mapping[str, np.ndarray] = {},
        backend: Backend = "tensorrt",
        plan: str | None = None,
        profile: int | None = None,
    ) -> None:
        super().__init__(outputs)
        self.backend = backend
        self.plan = plan
        self.profile = profile


class Engine(Protocol):
    """A loaded model that answers: a TensorRT engine, or the program it was built from.

    Safe to call from many threads at once.
    """

    @property
    def backend(self) -> Backend:
        """Who answers."""

    @property
    def interface(self) -> Interface:
        """Names, dtypes and shapes of inputs and outputs, and how they nest."""

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The shapes that calls may have."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model as the original was called, and answers in its own structure.

        Raises:
            InputError: The arguments do not fit the interface or any optimization profile.
            DeviceError: The GPU refused.
        """

    def predict(self, inputs: Any) -> Result:
        """Answers a dict of arrays by input name (one bare array for a model of one input) with one by output name.

        Raises:
            InputError: The inputs do not fit the interface or any optimization profile.
            DeviceError: The GPU refused.
        """

    def layers(self) -> Sequence[Mapping[str, Any]]:
        """The engine's layers, one row each; none for the reference backend."""

    def runtime_cache(self) -> bytes | None:
        """The kernels that TensorRT-RTX has compiled so far, to ship beside the plan; None where there are none."""

    def close(self) -> None:
        """Waits for running calls and gives everything back; later calls fail."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
