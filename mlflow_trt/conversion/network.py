"""What the network that TensorRT was given really holds: its layers, weights, inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..plan.dtypes import tensorrt_name

if TYPE_CHECKING:
    from ..plan.manifest import Census

# The layers that carry a network's arithmetic.
_ARITHMETIC = {"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "ATTENTION_INPUT", "ATTENTION_OUTPUT"}


@dataclass
class Network:
    """What the network that TensorRT was given really holds."""

    layers: dict[str, int] = field(default_factory=dict)
    weight_bytes: dict[str, int] = field(default_factory=dict)
    tf32: bool = False
    arithmetic: list[tuple[str, str, str]] = field(default_factory=list)
    """Name, kind and dtype of every layer that carries arithmetic."""
    inputs: list[tuple[str, str]] = field(default_factory=list)
    outputs: list[tuple[str, str, list[int]]] = field(default_factory=list)
    """Binding, dtype and shape (-1: dynamic)."""

    def census(self) -> Census:
        from ..plan.manifest import Census

        return Census(layers=self.layers, weight_bytes=self.weight_bytes, tf32=self.tf32)


def look(trt: Any, net: Any, tf32: bool) -> Network:
    """Reads dtypes, weights and outputs off a network. Strongly typed, it says exactly what the engine computes in."""
    network = Network(tf32=bool(tf32))
    for i in range(net.num_layers):
        layer = net.get_layer(i)
        if layer.num_outputs:
            dtype = _dtype_name(layer.get_output(0).dtype)
            network.layers[dtype] = network.layers.get(dtype, 0) + 1
            if layer.type.name in _ARITHMETIC:
                network.arithmetic.append((layer.name, layer.type.name, dtype))
        for weights in _weights(trt, layer):
            dtype = _dtype_name(weights.dtype)
            network.weight_bytes[dtype] = network.weight_bytes.get(dtype, 0) + int(weights.nbytes)
    for i in range(net.num_inputs):
        tensor = net.get_input(i)
        network.inputs.append((tensor.name, _dtype_name(tensor.dtype)))
    for i in range(net.num_outputs):
        tensor = net.get_output(i)
        try:
            shape = list(tensor.shape)
        except ValueError:  # TensorRT says so of a rank that it can't infer
            shape = []
        network.outputs.append((tensor.name, _dtype_name(tensor.dtype), shape))
    return network


def _weights(trt: Any, layer: Any) -> Sequence[Any]:
    """The constant weights of a layer; a base-class object hides the attributes of its kind."""
    kinds = {
        "CONSTANT": (getattr(trt, "IConstantLayer", None), ("weights",)),
        "CONVOLUTION": (getattr(trt, "IConvolutionLayer", None), ("kernel", "bias")),
        "DECONVOLUTION": (getattr(trt, "IDeconvolutionLayer", None), ("kernel", "bias")),
        "SCALE": (getattr(trt, "IScaleLayer", None), ("shift", "scale", "power")),
    }
    kind, attributes = kinds.get(layer.type.name, (None, ()))
    if kind is None:
        return ()
    layer.__class__ = kind
    return [_WeightSize(value) for name in attributes if (value := getattr(layer, name, None)) is not None]


class _WeightSize:
    """dtype and bytes of weights, which TensorRT gives as a numpy array or, where numpy has no such dtype, its own."""

    def __init__(self, weights: Any) -> None:
        self.dtype = weights.dtype
        self.nbytes = weights.nbytes


def _dtype_name(dtype: Any) -> str:
    """Of a ``DataType`` of TensorRT's, or a dtype of numpy's."""
    return tensorrt_name(str(getattr(dtype, "name", dtype)))
