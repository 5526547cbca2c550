"""What a converter is to build, and what it built: plain values, which travel to the building child and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .network import Network

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
ProgressListener = Callable[[str, str, int], None]
"""Called with ("start" | "step" | "finish", phase, steps)."""


@dataclass(frozen=True)
class BindingSpec:
    """One input of the network."""

    name: str
    dtype: str
    profiles: tuple[Shapes, ...]
    """(min, opt, max) per profile; a single one holds in all."""


@dataclass(frozen=True)
class Job:
    """What is to be built; everything but the program."""

    inputs: tuple[BindingSpec, ...]
    outputs: tuple[str, ...]
    """Binding names."""
    settings: Mapping[str, Any]
    capabilities: tuple[str, ...] | None
    """TensorRT-RTX: compute capabilities to build for; None: the current GPU."""
    uint8: tuple[str, ...] = ()
    """Outputs that are uint8: TensorRT has it at a network's edge alone, so the program has them in float32."""
    converter: str = "torch_tensorrt"
    """Who builds it: ``"torch_tensorrt"`` or ``"onnx"``."""

    @property
    def profiles(self) -> int:
        return max((len(spec.profiles) for spec in self.inputs), default=1)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "settings": dict(self.settings)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Job:
        inputs = tuple(
            BindingSpec(i["name"], i["dtype"], tuple(_shapes(p) for p in i["profiles"])) for i in content["inputs"]
        )
        capabilities = content["capabilities"]
        return cls(
            inputs,
            tuple(content["outputs"]),
            content["settings"],
            tuple(capabilities) if capabilities else None,
            tuple(content["uint8"]),
            content["converter"],
        )


def _shapes(profile: Sequence[Sequence[int]]) -> Shapes:
    low, opt, high = profile
    return tuple(low), tuple(opt), tuple(high)


@dataclass(frozen=True)
class Built:
    """A serialized engine and what was learned while it was built."""

    serialized: bytes
    network: Network
    seconds: float
