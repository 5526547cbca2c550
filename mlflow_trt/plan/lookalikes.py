"""What a file is that stands where a plan should: recognized by its first bytes, so that an error can name it.

Nothing here decides whether bytes are a plan; it is asked only when they are not.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass

START_BYTES = 1024
"""How many of a file's first bytes tell what it is."""

_FETCH = "fetch the file again: this came in its place"


@dataclass(frozen=True)
class Lookalike:
    """A kind of file that is no plan."""

    what: str
    """Completes "It is …"."""
    remedy: str
    suffix: str = ""
    """Of the files that are of this kind by right."""


@dataclass(frozen=True)
class _Row:
    lookalike: Lookalike
    matches: Callable[[bytes], bool]


def recognize(start: bytes) -> Lookalike | None:
    """Tells what a file is that is no plan.

    Args:
        start: The whole file, or its first :data:`START_BYTES` at least.

    Returns:
        The first row of the table that fits; None: no row does.
    """
    start = bytes(start[:START_BYTES])
    return next((row.lookalike for row in _TABLE if row.matches(start)), None)


def _begins(*prefixes: bytes) -> Callable[[bytes], bool]:
    return lambda start: start.startswith(prefixes)


def _is_page(start: bytes) -> bool:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype", b"<html", b"<?xml", b"<error"))


def _is_onnx(start: bytes) -> bool:
    # A ModelProto that begins with ir_version, as exporters write it; then the tag of another of its fields: producer
    # name and version, domain, model version, documentation, graph, opset, metadata, functions.
    return (
        len(start) > 2 and start[0] == 0x08 and start[1] < 0x80 and start[2] in b"\x12\x1a\x22\x28\x32\x3a\x42\x72\xca"
    )


def _is_pickle(start: bytes) -> bool:
    return len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5


def _is_safetensors(start: bytes) -> bool:
    # The length of a JSON header, as a u64, and the header.
    return len(start) > 8 and start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= 100_000_000


def _is_behind_metadata(start: bytes) -> bool:
    # Ultralytics writes the length of its JSON as an i32, the JSON, and then the engine.
    return len(start) > 4 and start[4:5] == b"{" and 2 <= int.from_bytes(start[:4], "little") < 1 << 24


def _is_text(start: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()  # where only the start is here, its last character may be cut
    try:
        text = decoder.decode(start, final=len(start) < START_BYTES)
    except UnicodeDecodeError:
        return False
    return bool(text) and all(c.isprintable() or c in "\t\r\n\f" for c in text.removeprefix("\ufeff"))


def _is_json(start: bytes) -> bool:
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") and _is_text(start)


def _is_zeros(start: bytes) -> bool:
    return not start.strip(b"\0")


# The first that fits counts: a row stands before those that would take its files too.
_TABLE = (
    _Row(Lookalike("an empty file", "fetch or copy the file again: nothing of it arrived"), lambda start: not start),
    _Row(Lookalike("only zeros", "fetch or copy the file again: room was made for it, and nothing written"), _is_zeros),
    _Row(
        Lookalike("a Git LFS pointer, which stands for the file itself", "run git lfs pull where it was cloned"),
        _begins(b"version https://git-lfs.github.com/spec/"),
    ),
    _Row(
        # Read off what tensorrt_rtx 1.6.1.120 serializes: the archive that 'ptrt' stands for, and this text behind its
        # numbers. That full TensorRT writes the same is inferred: its library names the same archive.
        Lookalike(
            "a TensorRT timing cache, which speeds up building",
            "give the engine (trtexec: --saveEngine, not --timingCacheFile)",
            ".cache",
        ),
        lambda start: start.startswith(b"ptrt") and b"file_format_version=" in start,
    ),
    _Row(
        # From 8.6 on the same bytes follow a header that begins with 'ftrt'.
        Lookalike(
            "a plan of a TensorRT before 8.6 (it begins with b'ptrt'), which no release that is supported here loads",
            "build the engine again from its model with the TensorRT that will load it",
        ),
        _begins(b"ptrt"),
    ),
    _Row(
        Lookalike(
            "a zip archive, as PyTorch's .pt and .pt2 files are",
            "unpack it and give the engine inside; if it holds a PyTorch program, convert that: mlflow_trt.convert",
            ".pt2",
        ),
        _begins(b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"),
    ),
    _Row(
        Lookalike("compressed (gzip, zstd, xz or bzip2)", "decompress it and give the engine inside", ".gz"),
        _begins(b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh"),
    ),
    _Row(
        Lookalike("a tar archive", "unpack it and give the engine inside", ".tar"),
        lambda start: start[257:262] == b"ustar",
    ),
    _Row(
        Lookalike(
            "an HTML or XML page, as stores and proxies answer errors",
            f"{_FETCH}; its text says why (an address, a login, a missing object)",
            ".html",
        ),
        _is_page,
    ),
    _Row(
        Lookalike(
            "a safetensors file: weights alone, no engine", "convert the model that they belong to", ".safetensors"
        ),
        _is_safetensors,
    ),
    _Row(
        Lookalike(
            "an engine behind metadata in JSON, as Ultralytics exports it",
            "leave out the metadata: the file's first 4 bytes are its length (a little-endian integer), and the engine "
            "begins that many bytes behind them",
        ),
        _is_behind_metadata,
    ),
    _Row(
        Lookalike(
            "a pickle, as older .pt files are",
            "convert the model that it holds: mlflow_trt.convert",
            ".pkl",
        ),
        _is_pickle,
    ),
    _Row(
        Lookalike(
            "an ONNX model",
            "convert it: mlflow_trt.convert takes such a file",
            ".onnx",
        ),
        _is_onnx,
    ),
    _Row(Lookalike("a JSON file", f"{_FETCH}; it may say why", ".json"), _is_json),
    _Row(Lookalike("a text file", f"{_FETCH}; it may say why", ".txt"), _is_text),
)
