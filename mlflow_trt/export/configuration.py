"""What Triton is told of a model: the ``ModelConfig`` behind ``config.pbtxt``, and the files of its warm-up.

Pure functions of the manifest, the plans and the golden inputs. The message and its fields are Triton's own
(``model_config.proto``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import CompatibilityError, InputError, SettingError
from ..plan.batch_sizes import batch_sizes
from ..plan.casts import encoder
from ..plan.dtypes import STORAGE, TABLE
from ..plan.files import GoldenTensors
from ..plan.manifest import Interface, Profile, Tensor
from ..plan.signature import CallSignature
from .pbtxt import Message, Name
from .selection import Selection

DATATYPES = {d.name: d.triton for d in TABLE if d.triton}
"""A binding's dtype → Triton's, where its TensorRT backend takes it (Triton's documentation, "Datatypes")."""


@dataclass(frozen=True)
class TritonOptions:
    """What the user decides of how Triton runs a model."""

    batching: bool = True
    preferred_batch_sizes: tuple[int, ...] = ()
    delay: float = 0.0
    instances: int = 1
    gpus: tuple[int, ...] = ()
    keep_versions: int | None = 1

    def __post_init__(self) -> None:
        for name, bad, expected in (
            ("delay", not 0 <= self.delay < 1e6, "0 or more, in seconds"),
            ("instances", self.instances < 1, "at least 1"),
            ("gpus", any(gpu < 0 for gpu in self.gpus), "indices of GPUs, from 0"),
            ("keep_versions", self.keep_versions is not None and self.keep_versions < 1, "at least 1, or None for all"),
        ):
            if bad:
                raise SettingError(f"{name} is {getattr(self, name)}.", expected, f"give another {name}")


@dataclass(frozen=True)
class Configuration:
    """A model's configuration and the files that it names."""

    message: Message
    warmup: Mapping[str, bytes] = field(default_factory=dict)
    """File name in the model's ``warmup`` folder → raw bytes."""
    notes: tuple[str, ...] = ()
    """What the user should know."""


def configure(
    name: str, interface: Interface, selection: Selection, golden: GoldenTensors | None, options: TritonOptions
) -> Configuration:
    """Decides a model's configuration.

    Requests of a model whose every input and output has the same dynamic first dimension are rows of a batch:
    ``max_batch_size`` is then the largest of all profiles, and ``dims`` are without that dimension. Triton joins them
    (``dynamic_batching``) only where some profile takes every size that can come of it. For all other models
    ``max_batch_size`` is 0 and ``dims`` are whole.

    Args:
        name: The model's name, which is its folder's too.
        interface: Inputs and outputs; Triton knows them by their bindings' names and dtypes.
        selection: The plans.
        golden: Inputs to warm up with, one sample a profile point; None: no warm-up.
        options: What the user decides.

    Raises:
        CompatibilityError: A binding is a scalar, or its dtype is none of Triton's.
        SettingError: A preferred batch size is more than the model takes, or the model has no batch.
    """
    profiles = selection.profiles
    sizes = batch_sizes(interface, profiles)
    largest = sizes[-1] if sizes else 0
    if wrong := [n for n in options.preferred_batch_sizes if not 1 <= n <= largest]:
        raise SettingError(
            f"The preferred batch sizes hold {wrong[0]}.",
            f"1 to {largest}" if largest else "none: the requests of this model can't be joined",
            "leave it out",
        )
    joined = bool(sizes) and options.batching
    notes = []
    if joined and not _every_sum_fits(profiles):
        joined = False
        notes.append(
            "Triton will not join requests: the optimization profiles leave batch sizes out that would come of it, and "
            "Triton can't pad. Convert with one profile to have them joined."
        )
    message: dict[str, Any] = {
        "name": name,
        "platform": "tensorrt_plan",
        "max_batch_size": largest,
        "input": [_tensor(t, batched=bool(sizes)) for t in interface.inputs],
        "output": [_tensor(t, batched=bool(sizes)) for t in interface.outputs],
        "version_policy": {"latest": {"num_versions": options.keep_versions}} if options.keep_versions else {"all": {}},
        "instance_group": [
            {
                "count": options.instances,
                "kind": Name("KIND_GPU"),
                "gpus": options.gpus,
                # Without names the backend takes the first profile alone.
                "profile": [str(i) for i in range(len(profiles))] if len(profiles) > 1 else [],
            }
        ],
    }
    if joined:
        message["dynamic_batching"] = {
            "preferred_batch_size": sorted(set(options.preferred_batch_sizes)),
            "max_queue_delay_microseconds": round(options.delay * 1e6),
        }
    message["cc_model_filenames"] = [{"key": k, "value": v} for k, v in sorted(selection.by_capability.items())]
    files: dict[str, bytes] = {}
    if golden is not None:
        message["model_warmup"], files = _warmup(interface, profiles, golden, batched=bool(sizes))
    return Configuration(message, files, tuple(notes))


def _every_sum_fits(profiles: Sequence[Profile]) -> bool:
    """Whether every batch size from the smallest to the largest runs, whatever the other dimensions are.

    So it is if the profiles agree in all other dimensions and leave no gap between their batch sizes, or if they agree
    in the batch sizes.
    """
    batches = {(max(r.min[0] for r in p.values()), min(r.max[0] for r in p.values())) for p in profiles}
    if len(batches) == 1:
        return True
    others = {tuple(sorted((name, r.min[1:], r.max[1:]) for name, r in p.items())) for p in profiles}
    reached = min(low for low, _ in batches)
    for low, high in sorted(batches):
        if low > reached + 1:
            return False
        reached = max(reached, high)
    return len(others) == 1


def _tensor(tensor: Tensor, *, batched: bool) -> Message:
    if not tensor.shape:
        raise CompatibilityError(
            f"The engine's {tensor.binding!r} has no dimension.",
            "at least one: Triton has no scalars",
            "convert a model that takes or gives it as one element of one dimension",
        )
    dims = [size if isinstance(size, int) else -1 for size in tensor.shape[1 if batched else 0 :]]
    described: dict[str, Any] = {"name": tensor.binding, "data_type": Name(_datatype(tensor)), "dims": dims or [1]}
    # Beside the batch Triton wants at least one dimension from its clients; the engine has none.
    return described if dims else {**described, "reshape": {"shape": []}}


def _datatype(tensor: Tensor) -> str:
    datatype = DATATYPES.get(tensor.binding_dtype)
    if datatype is None:
        raise CompatibilityError(
            f"The engine's {tensor.binding!r} has the dtype {tensor.binding_dtype}.",
            f"one that Triton's TensorRT backend has: {', '.join(DATATYPES)}",
            "convert the model with inputs and outputs of such a dtype; inside it may hold any",
        )
    return datatype


def _warmup(
    interface: Interface, profiles: Sequence[Profile], golden: GoldenTensors, *, batched: bool
) -> tuple[list[Message], dict[str, bytes]]:
    """One sample for every golden point that a profile takes, and its files.

    Where the model is batched, Triton repeats one row up to ``batch_size``, so the first row is all that it gets.
    """
    samples: list[Message] = []
    files: dict[str, bytes] = {}
    call_signature = CallSignature(interface, profiles)
    for profile, point, inputs, _ in golden.points():
        if not _takes(call_signature, inputs):
            continue  # the point of another plan's profile
        entries = []
        for position, tensor in enumerate(interface.inputs):
            bits = _bits(tensor, inputs[tensor.name])
            row = bits[0] if batched else bits
            file = f"{profile}.{point}.{position}"
            files[file] = row.tobytes()
            value = {"data_type": Name(_datatype(tensor)), "dims": row.shape or (1,), "input_data_file": file}
            entries.append({"key": tensor.binding, "value": value})
        rows = inputs[interface.inputs[0].name].shape[0] if batched else 1
        samples.append({"name": f"profile {profile}, {point}", "batch_size": rows, "inputs": entries})
    return samples, files


def _takes(call_signature: CallSignature, inputs: Mapping[str, np.ndarray]) -> bool:
    try:
        call_signature.check(inputs)
    except InputError:
        return False
    return True


def _bits(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    """A caller's array as the binding holds it, little-endian."""
    out = np.empty(array.shape, STORAGE[tensor.binding_dtype].newbyteorder("<"))
    encoder(tensor.dtype, tensor.binding_dtype, tensor.name)(array, out)
    return out
