"""What the command line says in text: a model's source, its inputs, and Torch-TensorRT's settings."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..flavor.sources.graphs import is_graph
from ..inputs import Dimension, Input

_EXAMPLE = "x=float32[1:8:32,3,224,224]"
_INPUT = re.compile(r"(?:(?P<name>[^=\[\]]+)=)?\s*(?P<dtype>\w+)\s*\[(?P<shapes>[^\[\]]*)\]")
_SOURCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def parse_input(text: str) -> Input:
    """Reads ``NAME=DTYPE[DIMENSIONS]``.

    Args:
        text: The name may be left out: by position then. A dimension is a size, or ``min:opt:max``, with a name of its
            own before it or without: ``ids=int64[batch=1:8:32,tokens=8:64:128]``; several optimization profiles stand
            with ``;`` between them: ``ids=int64[1,1:16:64; 8,1:64:128]``.

    Raises:
        SettingError: The text is none of this, or its sizes or dtype are refused by :class:`~mlflow_trt.Input`.
    """
    match = _INPUT.fullmatch(text.strip())
    if match is None:
        raise _unreadable(text, "it is not NAME=DTYPE[DIMENSIONS]")
    profiles = [_shape(shape, text) for shape in match["shapes"].split(";")]
    return Input(profiles=profiles, dtype=match["dtype"], name=match["name"] and match["name"].strip())


def parse_dims(texts: Iterable[str]) -> dict[str, int | tuple[int, int, int]]:
    """Reads ``NAME=SIZE`` and ``NAME=MIN:OPT:MAX`` of dynamic dimensions.

    Raises:
        SettingError: A text is neither, or a name comes twice.
    """
    dims: dict[str, int | tuple[int, int, int]] = {}
    for text in texts:
        name, _, span = text.rpartition("=")
        sizes = [size.strip() for size in span.split(":")]
        if not name or len(sizes) not in (1, 3) or not all(size.isdecimal() for size in sizes):
            raise SettingError(
                f"The dimension {text!r} can't be read.", "NAME=SIZE or NAME=MIN:OPT:MAX", "write it like batch=1:8:32"
            )
        if name in dims:
            raise SettingError(f"The dimension {name} is given twice.", "each once", "leave one of them out")
        numbers = [int(size) for size in sizes]
        dims[name] = numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])
    return dims


def _shape(shape: str, text: str) -> tuple[Dimension, ...]:
    return tuple(_dimension(part.strip(), text) for part in shape.split(",")) if shape.strip() else ()


def _dimension(part: str, text: str) -> Dimension:
    name, named, span = part.rpartition("=")
    sizes = [size.strip() for size in span.split(":")]
    if len(sizes) not in (1, 3) or not all(size.isdecimal() for size in sizes):
        raise _unreadable(text, f"the dimension {part!r} is neither a size nor min:opt:max")
    numbers = [int(size) for size in sizes]
    if named:
        label = name.strip()
        return (label, numbers[0]) if len(numbers) == 1 else (label, numbers[0], numbers[1], numbers[2])
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


def _unreadable(text: str, reason: str) -> SettingError:
    return SettingError(
        f"The input {text!r} can't be read: {reason}.",
        f"NAME=DTYPE[DIMENSIONS], like {_EXAMPLE!r}",
        "quote it for the shell; write a dimension as a size or [name=]min:opt:max, and ';' between profiles",
    )


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Reads ``NAME=VALUE`` pairs; a value is JSON, and what is no JSON is a string.

    Raises:
        SettingError: A text has no ``=``, or a name comes twice.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise SettingError(
                f"The setting {text!r} can't be read.", "NAME=VALUE", "write it like optimization_level=5"
            )
        if name in settings:
            raise SettingError(f"The setting {name} is given twice.", "each setting once", "leave one of them out")
        # Python's words for these are what Torch-TensorRT's documentation shows.
        value = {"True": "true", "False": "false", "None": "null"}.get(value, value)
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def load(source: str | None, uri: str | None) -> Any:
    """What is to be converted: a source, which is loaded, or a URI, which names a model in MLflow.

    Args:
        source: As :func:`load_source` takes it; None: there is a URI.
        uri: ``models:/name/3``, another URI of a model, or its folder.

    Raises:
        SettingError: The source can't be loaded, or the URI is none.
    """
    if source is not None:
        return load_source(source)
    from ..flavor.sources.stored import is_source

    if not is_source(uri):
        raise SettingError(
            f"{uri} is neither the URI of a model nor a folder of MLflow's flavor pytorch or onnx.",
            "models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID, runs:/ID/PATH, or such a folder",
            "correct it, or name a .pt2 file, module:attribute or engine without --from",
        )
    return uri


def load_source(text: str) -> Any:
    """Loads what is to be converted.

    Args:
        text: A file that ``torch.export.save`` wrote (``.pt2``), a graph in ONNX (``.onnx``), or ``module:attribute``:
            a model, or a function or class that makes one when called without arguments. Modules are looked up in the
            working directory too.

    Returns:
        An ``ExportedProgram``, an ``nn.Module``, or the graph's path.

    Raises:
        SettingError: There is no such file, module or attribute, it is no model, or torch is not installed.
    """
    if is_graph(text):
        return text
    try:
        import torch
    except ModuleNotFoundError as error:
        raise SettingError(
            f"torch is not installed here, and {text} names a PyTorch model.",
            "torch and Torch-TensorRT, which convert such models, or a graph in ONNX (.onnx)",
            "pip install 'mlflow-trt[convert-rtx]', or [convert] for full TensorRT",
        ) from error

    if text.endswith(".pt2"):
        try:
            return torch.export.load(text)
        except Exception as error:  # torch raises whatever its archive reader meets
            raise SettingError(
                f"{text} can't be read as an exported program: {error}",
                "a file that torch.export.save wrote",
                "check the path, and that this torch is not older than the one that wrote it",
            ) from error
    if not _SOURCE.fullmatch(text):
        raise SettingError(
            f"The model {text!r} is neither a .pt2 or .onnx file nor module:attribute.",
            "a file that torch.export.save wrote, an .onnx file, or a name such as models:make_classifier",
            "give one of the two; a model that MLflow holds is named by --from",
        )
    named = _attribute(text)
    model = named if isinstance(named, torch.nn.Module) or not callable(named) else named()
    if not isinstance(model, (torch.nn.Module, torch.export.ExportedProgram)):
        raise SettingError(
            f"{text} is a {type(model).__name__}.",
            "a torch.nn.Module or ExportedProgram, or a function or class that returns one without arguments",
            "name another attribute",
        )
    return model


def is_engine_or_folder(text: str) -> bool:
    """Whether a source is already built: an engine's file, or a folder that ``save_model`` wrote."""
    return Path(text).exists() and not text.endswith(".pt2") and not is_graph(text)


def _attribute(text: str) -> Any:
    module_name, _, path = text.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        attribute: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise SettingError(
            f"There is no module {error.name!r}.",
            "a module in the working directory or installed in this environment",
            "check the name, or change into the folder that holds it",
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    for name in path.split("."):
        try:
            attribute = getattr(attribute, name)
        except AttributeError as error:
            raise SettingError(
                f"The module {module_name!r} has no {path!r}.", "the name of a model in it", "check the name"
            ) from error
    return attribute
