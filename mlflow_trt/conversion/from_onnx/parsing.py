"""What callers give as a model in ONNX, parsed; what is something else is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Union

from ...errors import ConversionError, PlanError, SettingError
from ...plan import lookalikes
from ...plan.files import HEADER_BYTES, read_header

if TYPE_CHECKING:
    from onnx import ModelProto

OnnxSource = Union[str, Path, bytes, "ModelProto"]

MOST = (1 << 31) - 1
"""Bytes of the largest message that protobuf parses."""


def parse(source: OnnxSource) -> tuple[ModelProto, Path | None]:
    """Parses a model.

    Returns:
        The model, a copy where a ``ModelProto`` was given, and its file.

    Raises:
        SettingError: No file is there, or it can't be read.
        ConversionError: It is no whole model in ONNX.
    """
    import onnx

    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        _check_whole(copy, "The ModelProto", b"")
        return copy, None
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _parsed(bytes(source), "The model"), None
    if not isinstance(source, (str, Path)):
        raise SettingError(
            f"A model in ONNX was given as {type(source).__name__}.",
            "the path of an ONNX file, its bytes, or an onnx.ModelProto",
            "give one of these",
        )
    path = Path(source)
    return _parsed(_content(path), str(path)), path


def _content(path: Path) -> bytes:
    try:
        if path.is_dir():
            inside = sorted(file.name for file in path.glob("*.onnx"))
            raise SettingError(
                f"{path} is a folder{', which holds ' + ', '.join(inside[:5]) if inside else ''}.",
                "an ONNX file",
                f"give the file: {path / inside[0]}" if inside else "give the file that holds the graph",
            )
        if (size := path.stat().st_size) > MOST:
            raise _too_large(str(path), size)
        return path.read_bytes()
    except FileNotFoundError:
        raise SettingError(f"{path} does not exist.", "an ONNX file", "correct the path") from None
    except OSError as error:
        raise SettingError(
            f"{path} can't be read: {error.strerror or error}.", "a file that can be read", "look at its permissions"
        ) from error


def _parsed(content: bytes, name: str) -> ModelProto:
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    if len(content) > MOST:
        raise _too_large(name, len(content))
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, UnicodeDecodeError):
        raise _no_model(name, content[: lookalikes.START_BYTES], len(content)) from None
    _check_whole(model, name, content[: lookalikes.START_BYTES], len(content))
    return model


def _too_large(name: str, size: int) -> ConversionError:
    return ConversionError(
        f"{name} has {size:,} bytes, more than a file of ONNX may have by itself.",
        "2 GB at most, as protobuf parses no more",
        "save the model with its weights beside it: onnx.save(model, path, save_as_external_data=True)",
    )


def _check_whole(model: ModelProto, name: str, start: bytes, size: int = 0) -> None:
    """Any bytes may parse: what is unknown to protobuf is passed over, and a file that was cut may end at a field."""
    if not model.HasField("graph") or model.ir_version <= 0:
        raise _no_model(name, start, size)


def _no_model(name: str, start: bytes, size: int) -> ConversionError:
    expected = "a model in ONNX: a ModelProto, as torch.onnx.export and onnx.save write it"
    if not start:
        return ConversionError(
            f"{name} is empty: it has no graph.", expected, "export the model again, or fetch the file again"
        )
    known = lookalikes.recognize(start)
    if known is not None and known.suffix != ".onnx":
        return ConversionError(f"{name} is {known.what}.", expected, _REMEDIES.get(known.suffix, known.remedy))
    if _is_plan(start):
        return ConversionError(
            f"{name} is a TensorRT engine already.", expected, "log it as it is: mlflow_trt.log_model takes engines"
        )
    if known is None:
        return ConversionError(f"{name} begins with {start[:8]!r}.", expected, "give the ONNX file itself")
    return ConversionError(
        f"{name} begins as a model in ONNX does, and is damaged or was cut short: it ends after {size:,} bytes.",
        "a whole model",
        "fetch or export it again",
    )


def _is_plan(start: bytes) -> bool:
    try:
        return len(start) >= HEADER_BYTES and bool(read_header(start).release)
    except PlanError:
        return False


_OF_TORCH = "convert the PyTorch model itself (mlflow_trt.convert takes modules and exported programs), or export it: "
_REMEDIES = {
    ".pt2": f"if it is PyTorch's, {_OF_TORCH}torch.onnx.export; if an archive, unpack it and give the ONNX file inside",
    ".pkl": f"{_OF_TORCH}torch.onnx.export; for scikit-learn there is skl2onnx",
    ".safetensors": f"{_OF_TORCH}torch.onnx.export",
    ".gz": "decompress it and give the ONNX file inside",
    ".tar": "unpack it and give the ONNX file inside",
    ".cache": "give the ONNX file itself",
}
"""What to do with files that are named after an ending of theirs, where a model in ONNX is wanted and no engine."""
