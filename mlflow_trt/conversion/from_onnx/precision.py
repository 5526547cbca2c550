"""stub"""

from dataclasses import dataclass

from .model import OnnxModel


@dataclass(frozen=True)
class Cast:
    model: OnnxModel
    kept: tuple[str, ...] = ()
    dtypes: frozenset[str] = frozenset()
    quantized: bool = False


def cast(model, precision):
    return Cast(model)
