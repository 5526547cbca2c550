"""A model of MLflow's flavor ``pytorch``: an exported program, or pickled code where that is allowed."""

from __future__ import annotations

import logging
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConversionError, SettingError, StoreError
from ...inputs import DTYPES
from . import logged_inputs, pickled
from .stored import StoredSource

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

_logger = logging.getLogger(__name__)

_PICKLE = "model.pth"
_PROGRAM = "model.pt2"
_ALLOW = "where you trust whoever logged it, allow_pickle=True (--allow-pickle)"


def file_of(source: StoredSource) -> Path:
    """The file that holds the model; MLflow takes the pickle where there are both.

    Raises:
        StoreError: There is none.
    """
    folder = source.path("model_data")
    for name in (_PICKLE, _PROGRAM):
        if (folder / name).is_file():
            return folder / name
    raise StoreError(
        f"{source.uri} holds neither {_PROGRAM} nor {_PICKLE}.", "what mlflow.pytorch wrote", "log the model again"
    )


@contextmanager
def loaded(source: StoredSource, allow_pickle: bool) -> Iterator[torch.nn.Module | ExportedProgram]:
    """Loads the model; its own code can be imported until the end.

    Args:
        source: Of the flavor ``pytorch``.
        allow_pickle: Whether what is pickled may be loaded, which can run any code.

    Raises:
        ConversionError: It can't be loaded here.
        SettingError: It is pickled, and that is not allowed.
        StoreError: There is no such file, or it is damaged.
    """
    path = file_of(source)
    where = path.relative_to(source.folder.resolve()).as_posix()
    if path.name == _PROGRAM:
        yield _program(path, f"{where} of {source.uri}", allow_pickle)
        return
    if not allow_pickle:
        raise SettingError(
            f"{where} of {source.uri} is pickled Python code, which can do anything when it is loaded.",
            "an exported program, or leave to load it",
            "log the model with mlflow.pytorch.log_model(..., serialization_format='pt2', input_example=...), in older "
            f"MLflow export_model=True, and give that version; or, {_ALLOW}",
        )
    with _own_code(source.folder):
        yield _module(source, where)


def logged_shapes(
    model: torch.nn.Module | ExportedProgram, source: StoredSource
) -> list[tuple[str, logged_inputs.Shape]] | None:
    """Dtype and shape of each positional input: a program's own, or those that a module's signature tells.

    Returns:
        None: they are not known, or are not all of the model's arguments.
    """
    from torch.export import ExportedProgram

    if not isinstance(model, ExportedProgram):
        return logged_inputs.of_signature(source.mlmodel.signature)
    from torch.export.graph_signature import TensorArgument

    from ...conversion.program import placeholder_values
    from ...conversion.shapes import fixed_size
    from ...conversion.structure import user_inputs

    arguments, values = user_inputs(model), placeholder_values(model)
    if len(_example_arguments(model)) != len(arguments) or not all(isinstance(a, TensorArgument) for a in arguments):
        return None
    tensors = [values[argument.name] for argument in arguments]
    found = [(str(t.dtype).removeprefix("torch."), tuple(map(fixed_size, t.shape))) for t in tensors]
    return found if all(dtype in DTYPES for dtype, _ in found) else None


def example(model: torch.nn.Module | ExportedProgram, source: StoredSource) -> Any:
    """The inputs that were logged as an example: a program's own, or those beside a module; None: there are none."""
    from torch.export import ExportedProgram

    if isinstance(model, ExportedProgram):
        return _example_arguments(model) or None
    try:
        return source.mlmodel.load_input_example(str(source.folder))
    except Exception as error:  # of a format that this MLflow does not read, or without its file
        _logger.info("The input example of %s can't be read: %s", source.uri, error)
        return None


def _example_arguments(program: ExportedProgram) -> tuple[Any, ...]:
    """A program's example inputs; empty: there are none, or not by position alone."""
    arguments, keywords = program.example_inputs or ((), {})
    return () if keywords else tuple(arguments)


def _program(path: Path, what: str, allow_pickle: bool) -> ExportedProgram:
    import torch

    if not zipfile.is_zipfile(path):
        raise StoreError(f"{what} is no whole archive.", "a file that torch.export.save wrote", "log the model again")
    if not allow_pickle and (found := pickled.records(path)):
        raise SettingError(
            f"{what} holds pickled objects, which can do anything when they are loaded: {', '.join(found[:5])}.",
            "an exported program of tensors alone, as torch.export.save of torch 2.8 and newer writes it",
            f"log the model again with a newer torch; or, {_ALLOW}",
        )
    try:
        return torch.export.load(path)
    except Exception as error:
        raise _unreadable(what, error, "check that this torch is not older than the one that wrote it") from error


def _module(source: StoredSource, where: str) -> Any:
    import mlflow.pytorch

    try:
        # What the flavor leaves to torch: on a machine without a GPU, weights of one could not be loaded.
        return mlflow.pytorch.load_model(str(source.folder), map_location="cpu", weights_only=False)
    except Exception as error:
        raise _unreadable(
            f"{where} of {source.uri}",
            error,
            "install what its requirements.txt names, and log it with code_paths if its classes are in your own code",
        ) from error


def _unreadable(what: str, error: Exception, remedy: str) -> ConversionError:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return ConversionError(
        f"{what} can't be loaded: {type(error).__name__}: {lines[0][:500]}", "a model that this torch reads", remedy
    )


@contextmanager
def _own_code(folder: Path) -> Iterator[None]:
    """Takes a model's folders from Python's path again: MLflow leaves them, and whoever makes them anew is imported."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = [p for p in sys.path if p in before or not Path(p).resolve().is_relative_to(folder.resolve())]
