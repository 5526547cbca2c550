# ruff: noqa: E402
"""What a network holds, read off real ones that TensorRT-RTX's own builder was given."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the package of conversion imports it")
trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")

from mlflow_trt.conversion.network import look


@pytest.fixture(scope="module")
def builder():
    return trt.Builder(trt.Logger(trt.Logger.ERROR))


@pytest.fixture
def net(builder):
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def constant(net, shape, dtype):
    return net.add_constant(shape, trt.Weights(np.ones(shape, dtype))).get_output(0)


@pytest.mark.parametrize(("dtype", "name", "size"), [("float32", "float32", 4), ("float16", "float16", 2)])
def test_a_convolution_and_a_product(net, dtype, name, size):
    kind = trt.float32 if dtype == "float32" else trt.float16
    x = net.add_input("x", kind, (-1, 3, 8, 8))
    kernel, bias = np.ones((4, 3, 3, 3), dtype), np.ones(4, dtype)
    layer = net.add_convolution_nd(x, 4, (3, 3), trt.Weights(kernel), trt.Weights(bias))
    layer.name = "conv"
    moved = net.add_shuffle(layer.get_output(0))
    moved.reshape_dims = (-1, 36)
    product = net.add_matrix_multiply(
        *(moved.get_output(0), trt.MatrixOperation.NONE),
        *(constant(net, (36, 5), dtype), trt.MatrixOperation.NONE),
    )
    product.name = "product"
    product.get_output(0).name = "y"
    net.mark_output(product.get_output(0))

    network = look(trt, net, tf32=1)

    assert network.layers == {name: 4}
    assert network.arithmetic == [("conv", "CONVOLUTION", name), ("product", "MATRIX_MULTIPLY", name)]
    assert network.weight_bytes == {name: size * (4 * 27 + 4 + 36 * 5)}
    assert network.inputs == [("x", name)]
    assert network.outputs == [("y", name, [-1, 5])]
    assert network.tf32 is True
    census = network.census()
    assert (census.layers, census.weight_bytes, census.tf32) == (network.layers, network.weight_bytes, True)


def test_several_dtypes_and_an_unknown_rank(net):
    x = net.add_input("x", trt.float32, (-1, 4))
    half = net.add_cast(x, trt.float16).get_output(0)
    total = net.add_elementwise(half, constant(net, (1, 4), "float16"), trt.ElementWiseOperation.SUM).get_output(0)
    shape = net.add_shape(x).get_output(0)
    for tensor, name in ((total, "y"), (shape, "size")):
        tensor.name = name
        net.mark_output(tensor)

    network = look(trt, net, tf32=False)

    assert network.layers == {"float16": 3, "int64": 1}
    assert network.arithmetic == []
    assert network.weight_bytes == {"float16": 8}
    assert network.outputs == [("y", "float16", [-1, 4]), ("size", "int64", [2])]
    assert network.tf32 is False


def test_an_empty_network(net):
    network = look(trt, net, tf32=False)
    assert (network.layers, network.weight_bytes, network.inputs, network.outputs) == ({}, {}, [], [])
