"""Torch-TensorRT's own settings: which exist here, which we set for safety, and what precision was asked for."""

from __future__ import annotations

import ast
import difflib
import importlib.machinery
import inspect
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..inputs import dtype_name
from ..plan.dtypes import PRECISION_OF, torch_tensorrt_name

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
CONVERTER = "convert_exported_program_to_serialized_trt_engine"

SAFE: dict[str, Any] = {
    # Upstream's True takes every attention bias for a causal mask: a BERT with an attention mask then converts without
    # a word and is wrong by 7 to 17 %.
    "attn_bias_is_causal": False,
    # TensorRT has no float64; without this a constant in float64 fails the build.
    "truncate_double": True,
    # One engine is the whole model; nothing could run the parts that a hybrid graph leaves to PyTorch.
    "require_full_compilation": True,
}
"""What is set unless the caller says otherwise, where upstream's default gives wrong numbers or none."""

OF_THE_BUILDER = (
    "disable_tf32", "enable_weight_streaming", "hardware_compatible", "immutable_weights", "l2_limit_for_tiling",
    "max_aux_streams", "num_avg_timing_iters", "optimization_level", "refit_identical_engine_weights",
    "sparse_weights", "strip_engine_weights", "tiling_optimization_level", "version_compatible", "workspace_size",
)  # fmt: skip
"""Torch-TensorRT's settings that it hands to TensorRT's builder: they mean the same whoever makes the network."""

CONVERTERS = ("auto", "torch_tensorrt", "onnx")

_OURS = {
    "exported_program": "it is the model that convert is given",
    "inputs": "pass it to convert itself",
    "arg_inputs": "pass it to convert itself",
    "kwarg_inputs": "pass it to convert itself",
    "enabled_precisions": "pass it to convert itself",
    "arg_input_binding_names": "inputs keep their parameters' names",
    "kwarg_input_binding_names": "inputs keep their parameters' names",
    "output_binding_names": "use output_names",
    "kwargs": "pass the settings themselves",
}

_REFUSED = {
    ("lift_mutable_buffers", True): "pass the state as an input and return the new one as an output",
    ("dryrun", True): "a dry run builds no engine; use torch_tensorrt.dynamo.compile(..., dryrun=True)",
    ("use_explicit_typing", False): "use precision=: the precision of an engine is the precision of its graph",
}


@lru_cache(maxsize=1)
def known() -> tuple[str, ...]:
    """Names of the settings of the installed Torch-TensorRT, read from its source: importing it needs a GPU.

    Raises:
        SettingError: It is not installed.
    """
    spec = importlib.machinery.PathFinder.find_spec("torch_tensorrt")
    if spec is None or not spec.submodule_search_locations:
        raise SettingError(
            "Torch-TensorRT is not installed.",
            "torch-tensorrt-rtx (or torch-tensorrt) 2.11 to 2.14 beside torch",
            "pip install 'mlflow-trt[convert-rtx]'",
        )
    source = Path(next(iter(spec.submodule_search_locations))) / "dynamo" / "_compiler.py"
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == CONVERTER:
            return tuple(a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))
    raise SettingError(
        f"The installed Torch-TensorRT has no {CONVERTER}.", "Torch-TensorRT 2.11 to 2.14", "install one of these"
    )


def check(settings: Mapping[str, Any], converter: str = "torch_tensorrt") -> None:
    """Checks settings by name against the installed Torch-TensorRT; for ONNX, which needs none, against its own.

    Raises:
        SettingError: One is unknown (Torch-TensorRT itself would ignore it without a word), or can't be honoured.
    """
    names = [name for name in _names(converter) if name not in _OURS]
    for name, value in settings.items():
        if name in _OURS:
            raise SettingError(f"{name} is no setting.", "Torch-TensorRT's own settings", _OURS[name])
        if name not in names:
            ours = [*(p for p in inspect.signature(_public(converter)).parameters if p != "settings"), "allow_pickle"]
            near = difflib.get_close_matches(name, [*names, *ours], n=1, cutoff=0.5)
            raise SettingError(
                f"The setting {name!r} is unknown to "
                f"{'the converter onnx' if converter == 'onnx' else 'the installed Torch-TensorRT'}.",
                f"{near[0]!r}?" if near else f"one of {', '.join(names)}",
                "correct the name, or leave it out",
            )
        for (refused, bad), remedy in _REFUSED.items():
            if name == refused and value is bad:
                raise SettingError(f"{name}={value} can't be honoured here.", f"{name}={not value}", remedy)


def _names(converter: str) -> tuple[str, ...]:
    return (*OF_THE_BUILDER, *SAFE) if converter == "onnx" else known()


def of_the_builder(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that hold for an engine that is built from ONNX.

    Raises:
        SettingError: One is Torch-TensorRT's alone.
    """
    foreign = [n for n, v in settings.items() if n not in (*OF_THE_BUILDER, *_NO_MATTER) and SAFE.get(n, _NONE) != v]
    if foreign:
        raise SettingError(
            f"An engine that is built from ONNX has no setting {', '.join(foreign)}: it is Torch-TensorRT's own.",
            f"those of TensorRT's builder: {', '.join(OF_THE_BUILDER)}",
            "leave it out, or choose converter='torch_tensorrt'",
        )
    return {name: value for name, value in settings.items() if name in OF_THE_BUILDER}


_NONE = object()
_NO_MATTER = ("offload_module_to_cpu",)
"""Says only how Torch-TensorRT goes about it."""


def converter_of(name: str) -> str:
    """Checks the name of a converter.

    Raises:
        SettingError: There is none of this name.
    """
    if name not in CONVERTERS:
        near = difflib.get_close_matches(str(name).lower().replace("-", "_"), CONVERTERS, n=1, cutoff=0.3)
        raise SettingError(
            f"The converter {name!r} is unknown.",
            f"one of {', '.join(CONVERTERS)}",
            f"write converter={near[0]!r}" if near else "choose one of these",
        )
    return name


def _public(converter: str) -> Any:
    """What has the package's own arguments: for ONNX, the function that needs no torch."""
    if converter == "onnx":
        from .from_onnx.convert import convert as of_graph

        return of_graph
    from .core import convert

    return convert


def complete(
    settings: Mapping[str, Any], precision: str | None, gpu: bool, converter: str = "torch_tensorrt"
) -> dict[str, Any]:
    """The settings that the build gets: the caller's over the safe ones.

    Raises:
        SettingError: The caller's TF32 setting contradicts the precision, or a setting needs a GPU.
    """
    names = _names(converter)
    chosen = {name: value for name, value in SAFE.items() if name in names}
    if not gpu:
        # With False upstream asks the driver for the GPU's free memory.
        chosen["offload_module_to_cpu"] = True
        if settings.get("immutable_weights") is False:
            raise SettingError(
                "immutable_weights=False was asked for without a GPU.",
                "a GPU at build time: TensorRT-RTX makes refittable engines for the current one only",
                "convert on the machine with the GPU and without compute_capabilities, or leave the setting out",
            )
    if precision in ("fp32", "tf32"):
        # float32 alone still lets TensorRT round products to TF32's 10 bits.
        strict = precision == "fp32"
        if settings.get("disable_tf32", strict) is not strict:
            raise SettingError(
                f"precision={precision!r} and disable_tf32={settings['disable_tf32']} contradict each other.",
                "one of the two",
                "leave disable_tf32 out",
            )
        chosen["disable_tf32"] = strict
    return {**chosen, **settings}


def precision_of(precision: str | None, enabled_precisions: Any) -> str | None:
    """One precision out of the two ways to ask for it.

    ``enabled_precisions`` means what it says in Torch-TensorRT's documentation: the arithmetic may use these. With a
    half precision in it, that one is used; with float32 alone, float32 without TF32.

    Raises:
        SettingError: The name is unknown, both half precisions are asked for, or the two ways contradict.
    """
    if precision is not None and precision not in PRECISIONS:
        near = difflib.get_close_matches(str(precision).lower(), PRECISIONS, n=1, cutoff=0.3)
        raise SettingError(
            f"The precision {precision!r} is unknown.",
            f"one of {', '.join(PRECISIONS)}, or None for the model's own dtypes",
            f"write precision={near[0]!r}" if near else "choose one of these",
        )
    if enabled_precisions is None:
        return precision
    given = (
        enabled_precisions if isinstance(enabled_precisions, (set, frozenset, tuple, list)) else [enabled_precisions]
    )
    names = {_precision_of(value) for value in given}
    if unknown := names - set(PRECISION_OF.values()):
        raise SettingError(
            f"enabled_precisions has {', '.join(sorted(unknown))}.",
            "float32, float16 and bfloat16",
            "quantize the weights (nvidia-modelopt) for FP8 and INT8: the precision of an engine is its graph's",
        )
    halves = names - {"fp32"}
    if len(halves) > 1:
        raise SettingError(
            "enabled_precisions has both float16 and bfloat16.",
            "one of them: a network is strongly typed and has no mixed choice",
            "leave one out",
        )
    asked = next(iter(halves), "fp32" if names else None)
    if precision is not None and asked is not None and asked != precision and (precision, asked) != ("tf32", "fp32"):
        raise SettingError(
            f"precision={precision!r} and enabled_precisions contradict each other.", "one of the two", "leave one out"
        )
    return precision or asked


def _precision_of(value: Any) -> str:
    """The precision that a dtype stands for, or a name for the dtype where it is none."""
    name = str(getattr(value, "name", None) or value).removeprefix("torch.")
    if name in PRECISION_OF.values():
        return name
    try:
        name = dtype_name(torch_tensorrt_name(name))
    except SettingError:
        return name
    return PRECISION_OF.get(name, name)


def json_safe(value: Any) -> Any:
    """A setting's value as the manifest can hold it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(k): json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [json_safe(v) for v in value]
        return sorted(items, key=str) if isinstance(value, (set, frozenset)) else items
    return str(value)
