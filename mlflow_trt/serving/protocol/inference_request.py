"""An inference request, whichever way it came, and whether it fits the model that it asks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ...plan.manifest import Interface, Tensor
from .datatypes import NAMES, OF_BINDINGS, ProtocolError, show

MOST = 4096
"""Inputs and outputs: each is an object of its own in memory, however few bytes it came as."""
SLOW = frozenset({"BOOL", "BYTES", "BF16"})
"""Datatypes whose raw data is more than looked at."""


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the client asks for."""

    name: str
    binary: bool
    """Raw data behind the JSON, not JSON."""


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """An inference request, well-formed; whether it fits the model is for ``fit`` to say."""

    id: str
    """Empty if there is none."""
    inputs: dict[str, np.ndarray]
    """By name. Raw data as views of the body; BF16 as float32, BYTES as ``bytes`` objects."""
    datatypes: dict[str, str]
    """As they were sent: ``{"x": "BF16"}``."""
    outputs: tuple[RequestedOutput, ...] | None
    """In the order they were asked for; None: all."""
    binary: bool
    """What outputs not named come as."""
    timeout: float | None
    """Seconds, at most a day; None: the client set none."""


def fit(request: InferenceRequest, interface: Interface) -> dict[str, np.ndarray]:
    """Checks a request's names and datatypes against the model's; shapes are checked where the engine is called.

    FP16 or BF16 is taken for a float32 input that is of that type inside the engine.

    Returns:
        The inputs by name, of the dtypes that the engine takes.

    Raises:
        InputError: An input is missing, unknown or of another datatype.
        ProtocolError: A wanted output is unknown.
    """
    inputs: dict[str, np.ndarray] = {}
    for tensor in interface.inputs:
        array = request.inputs.get(tensor.name)
        if array is None:
            raise _wrong_names(request, interface)
        sent = request.datatypes[tensor.name]
        if sent != NAMES[tensor.dtype]:
            check_sent(tensor, sent)
            array = array.astype(np.float32, copy=False)
        inputs[tensor.name] = array
    if len(inputs) != len(request.inputs):
        raise _wrong_names(request, interface)
    names = [tensor.name for tensor in interface.outputs]
    for wanted in request.outputs or ():
        if wanted.name not in names:
            raise ProtocolError(
                f"The output {show(wanted.name)} is asked for.", f"one of {', '.join(names)}", "correct the name"
            )
    return inputs


def check_sent(tensor: Tensor, sent: str) -> None:
    """Checks an input's datatype against the model's.

    Raises:
        InputError: It is another, and the engine would not round to it anyway.
    """
    if sent == NAMES[tensor.dtype] or (tensor.dtype == "float32" and sent == OF_BINDINGS.get(tensor.binding_dtype)):
        return  # where the engine holds a float32 input in fewer bits, it rounds to them anyway
    raise InputError(
        f"Input {tensor.name!r} is sent as {sent}.",
        NAMES[tensor.dtype],
        "convert it: nothing says which conversion its owner meant",
    )


def _wrong_names(request: InferenceRequest, interface: Interface) -> InputError:
    names = [tensor.name for tensor in interface.inputs]
    missing = [name for name in names if name not in request.inputs]
    extra = [show(name) for name in request.inputs if name not in names]
    parts = [f"missing: {', '.join(missing)}"] * bool(missing)
    parts += [f"not known: {', '.join(extra[:5])}{', …' * (len(extra) > 5)}"] * bool(extra)
    return InputError(
        f"The inputs don't fit: {'; '.join(parts)}.", f"exactly {', '.join(names)}", "give each array under its name"
    )
