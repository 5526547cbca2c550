"""What is refused of a graph before anything is built of it, and the words for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import ConversionError, UnsupportedOperatorError
from ...plan.dtypes import STORAGE, WIDER
from .element_types import entries, kind_of, name_of, size
from .graphs import graphs, nodes, tensors, where
from .skeleton import skeleton

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

OLDEST_OPSET = 7
"""The first that ONNX Runtime promises. Before it operators broadcast otherwise, which TensorRT's parser refuses."""
CLASSICAL = "ai.onnx.ml"
STANDARD = ("", "ai.onnx")

FED = tuple(STORAGE)
"""Dtypes of inputs."""


def check_versions(model: ModelProto) -> None:
    """Checks that the model is of a time that the installed onnx knows.

    Raises:
        ConversionError: It is newer, or too old.
    """
    import onnx

    if model.ir_version > onnx.IR_VERSION:
        raise _too_new(f"IR version {model.ir_version}", str(onnx.IR_VERSION))
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    standard = next((opsets[domain] for domain in STANDARD if domain in opsets), 1 if model.ir_version < 3 else None)
    if standard is not None and standard < OLDEST_OPSET:
        raise ConversionError(
            f"The model is of opset {standard}.",
            f"opset {OLDEST_OPSET} or newer: older operators mean other things",
            "export it again with a newer opset, or convert it: onnx.version_converter.convert_version(model, 17)",
        )
    newest = onnx.defs.onnx_opset_version()
    if standard is not None and standard > newest:
        raise _too_new(f"opset {standard}", str(newest))
    known = max(row[3] for row in onnx.helper.VERSION_TABLE)  # release, IR, opset, ai.onnx.ml
    if opsets.get(CLASSICAL, 0) > known:
        raise _too_new(f"opset {opsets[CLASSICAL]} of {CLASSICAL}", str(known))


def _too_new(found: str, known: str) -> ConversionError:
    import onnx

    return ConversionError(
        f"The model is of {found}, which onnx {onnx.__version__}, installed here, does not know.",
        f"at most {known}",
        "pip install -U onnx onnxruntime, or export the model with an older opset",
    )


def check_graph(model: ModelProto) -> None:
    """Checks a graph as onnx does, and that it is fed and answers what an engine can.

    Raises:
        ConversionError: It is not valid, or an input is nothing that an engine takes.
    """
    _check_inputs(model)
    names = [value.name for value in model.graph.output]
    if not names:
        raise ConversionError("The graph has no outputs.", "a graph that answers", "export the model again")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConversionError(
            f"The graph has two outputs of one name: {', '.join(twice)}.",
            "names of their own",
            "export the model again",
        )
    _check_known(model)
    _check_validity(model)


def check_weights(model: ModelProto) -> None:
    """Checks that tensors are dense, of a dtype that onnx knows, and whole, but for those whose bytes lie outside.

    Raises:
        ConversionError: One is not.
    """
    from onnx import TensorProto

    for graph in graphs(model):
        if graph.sparse_initializer:
            raise ConversionError(
                f"The weights {graph.sparse_initializer[0].values.name or 'of the graph'} are sparse.",
                "dense weights",
                "write them as dense tensors",
            )
    for tensor in tensors(model):
        if name_of(tensor.data_type) is None:
            raise _damaged(tensor, f"are of a dtype that onnx does not know ({tensor.data_type})")
        if any(dim < 0 for dim in tensor.dims) or tensor.HasField("segment"):
            raise _damaged(tensor, f"are a part of a tensor, or of an impossible shape: {list(tensor.dims)}")
        outside = tensor.data_location == TensorProto.EXTERNAL
        if outside and tensor.data_type == TensorProto.STRING:
            raise _damaged(tensor, "are strings in a file of their own")
        if outside or tensor.data_type == TensorProto.STRING:
            continue
        wanted, found = _elements(tensor)
        if wanted != found:
            raise _damaged(tensor, f"are {found:,} long, and {list(tensor.dims)} needs {wanted:,}")


def _elements(tensor: TensorProto) -> tuple[int, int]:
    """How long a tensor's values should be and are: in bytes, where they are raw, or in entries of their field."""
    from onnx import helper

    if tensor.HasField("raw_data"):
        return size(tensor), len(tensor.raw_data)
    return entries(tensor), len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))


def _damaged(tensor: TensorProto, found: str) -> ConversionError:
    return ConversionError(
        f"The values of {tensor.name or 'a constant'} {found}.",
        "a whole model",
        "fetch or export it again: it was cut short or altered on its way",
    )


def _check_inputs(model: ModelProto) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    fed = [value for value in model.graph.input if value.name not in weights]
    if not fed:
        raise ConversionError(
            "The graph has no inputs: it always answers the same.", "at least one input", "export the model again"
        )
    for value in fed:
        kind = value.type.tensor_type
        dtype = kind_of(value)
        if dtype not in FED:
            wider = WIDER.get(dtype)
            raise ConversionError(
                f"The input {value.name} is {dtype}.",
                f"a tensor of {', '.join(FED)}: TensorRT takes no others",
                f"make the graph's input {wider}, with a Cast behind it" if wider else _ENCODE,
            )
        if not kind.HasField("shape"):
            raise ConversionError(
                f"Not even the rank of the input {value.name} is known.",
                "a number of dimensions, of which any may be dynamic",
                "export the model with example inputs, or name the shape: "
                "onnx.tools.update_model_dims.update_inputs_outputs_dims",
            )
        if any(dim.HasField("dim_value") and dim.dim_value == 0 for dim in kind.shape.dim):
            raise ConversionError(
                f"The input {value.name} has no elements: one of its dimensions is 0.",
                "sizes of 1 or more",
                "export the model with a dynamic dimension",
            )


_ENCODE = "leave to the program before the engine what makes numbers of it, and export the rest of the model"


def _check_known(model: ModelProto) -> None:
    from onnx import defs

    versions = {opset.domain: opset.version for opset in model.opset_import}
    functions = {(function.domain, function.name) for function in model.functions}
    unknown = [
        node
        for node in nodes(model)
        if node.domain in versions
        and (node.domain in (*STANDARD, CLASSICAL))
        and (node.domain, node.op_type) not in functions
        and not defs.has(node.op_type, versions[node.domain], "" if node.domain in STANDARD else node.domain)
    ]
    if unknown:
        raise _unsupported(
            unknown, "that their opset has not", "operators of ONNX; plugins of TensorRT can't be compared", _ORIGIN
        )


def _check_validity(model: ModelProto) -> None:
    """By onnx's own checker, without the large weights. It wants a shape of each output, which nothing else needs."""
    import onnx

    made = skeleton(model)
    for graph in graphs(made):
        for value in (*graph.output, *graph.value_info):
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(made)
    except Exception as error:  # its own, protobuf's, or another of the native code
        raise ConversionError(
            f"The graph is not valid ONNX: {' '.join(str(error).split())[:600]}",
            "a graph that onnx.checker.check_model takes",
            "export the model again, or ask who made it",
        ) from error


def check_operators(model: ModelProto) -> None:
    """Checks that every node is of ONNX's own operators: TensorRT's parser takes another's for that of the same name.

    Raises:
        UnsupportedOperatorError: Some are of others, or random.
    """
    strangers = [node for node in nodes(model) if node.domain not in STANDARD]
    if strangers:
        raise _unsupported(
            strangers,
            "that are not ONNX's own",
            "operators of ONNX",
            "; ".join(dict.fromkeys(_ORIGINS.get(node.domain, _ORIGIN) for node in strangers)),
        )
    random = [node for node in nodes(model) if node.op_type in RANDOM]
    if random:
        raise _unsupported(
            random,
            "that answer otherwise each time",
            "a graph whose answers can be checked",
            "export the model in evaluation mode, or feed the random numbers as an input",
        )


RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
_ORIGIN = "replace these operators, or move them out of the model, before or after the engine"
_ORIGINS = {
    "com.microsoft": "give the model as it was before ONNX Runtime optimized or quantized it: its own operators run "
    "there alone",
    "com.microsoft.nchwc": "give the model as it was before ONNX Runtime optimized it",
    "org.pytorch.aten": "export the model with torch.onnx.export(dynamo=True), or convert the PyTorch model itself",
}


def _unsupported(strangers: Sequence[NodeProto], what: str, expected: str, remedy: str) -> UnsupportedOperatorError:
    first = {f"{node.domain}.{node.op_type}": node for node in reversed(strangers)}
    listed = "\n".join(f"  {where(node)}" for node in [*first.values()][::-1][:20])
    return UnsupportedOperatorError(
        f"The model has operators {what}:\n{listed}",
        expected,
        remedy,
        tuple(f"onnx.{name.removeprefix('.')}" for name in [*first][::-1]),
    )


def check_kernels(model: ModelProto) -> None:
    """Checks what TensorRT-RTX 1.6 parses and then can't build, and says only that it has no runners for.

    Raises:
        UnsupportedOperatorError: The graph has such operators; full TensorRT builds them.
    """
    lacking = [node for node in nodes(model) if node.op_type == "NonMaxSuppression"]
    if lacking:
        raise _unsupported(
            lacking,
            "that TensorRT-RTX can't build",
            "a graph whose answers have shapes that only the inputs' shapes decide",
            "export the model without them and select boxes after the engine (Ultralytics: export(nms=False)), or "
            "convert with full TensorRT",
        )


def check_outputs(model: ModelProto) -> None:
    """Checks that a graph answers tensors that an engine can answer.

    Raises:
        ConversionError: It answers none, or an output is something else.
    """
    if not model.graph.output:
        raise ConversionError(
            "The graph has no outputs but strings.", "a graph that answers numbers", "export the probabilities too"
        )
    for value in model.graph.output:
        if (dtype := kind_of(value)) not in FED:
            raise ConversionError(
                f"The output {value.name} is {dtype}.",
                f"a tensor of {', '.join(FED)}: TensorRT has no others",
                "export the model so that it answers tensors of these dtypes",
            )
