"""The server's log: one JSON object per line, so that no text that a client sends can pass for a line of its own.

Whatever else this process writes to standard error becomes such lines too: progress bars, warnings, what a native
library prints, the traceback of a thread. A pipe takes the place of the file descriptor, and a thread reads it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import faulthandler
import io
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from json.encoder import encode_basestring_ascii
from typing import Any, TextIO

QUIET = ("-W", "ignore")
"""Python's options for a child with a log of its own: what its imports warn of, its parent has logged already."""
OTHERS = "stderr"
"""The logger of lines that something else wrote to standard error."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
_NAMES = ("mlflow_trt", "uvicorn")
_LONGEST = 1 << 16
"""Bytes of a line that never ends; what follows is another line."""
_ENDING = 1.0
"""Seconds that the last lines may take: a child process of somebody else's may hold the pipe open."""
_logger = logging.getLogger(__name__)
_LATER = 0.02
"""Seconds that a request's line may wait for others."""
_waiting: list[str] = []
_second = (0, "1970-01-01T00:00:00")
"""A moment, and how it is written."""
_original: TextIO | None = None
"""Standard error, while a pipe has its place."""


class JsonFormatter(logging.Formatter):
    """Writes a record and its extra fields as JSON; everything beyond ASCII and all control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record."""
        fields = {
            "time": _moment(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to standard error, wherever that is at the moment."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = stream()
        super().emit(record)


def stream() -> TextIO:
    """Where the lines go."""
    return _original or sys.stderr


def descriptor() -> int | None:
    """What a child process gets as its standard error; None: what this process has."""
    return None if _original is None else _original.fileno()


def configure(level: str) -> None:
    """Sends this package's and uvicorn's log to standard error as JSON lines.

    Args:
        level: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.
    """
    handler = _Handler()
    for name in _NAMES:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())


def members(fields: dict[str, Any]) -> str:
    """The members of a JSON object, without its braces.

    Args:
        fields: What JSON can hold.
    """
    return ", ".join([f'"{key}": {_value(each)}' for key, each in fields.items()])


def write(shared: str, fields: dict[str, Any]) -> None:
    """Writes a line without the detours of :mod:`logging` and :mod:`json`, for the one that each request leaves.

    Args:
        shared: What :func:`members` made of that which many lines share: level, logger and message at least.
        fields: What is this line's own.
    """
    line = f'{{"time": "{_moment(time.time())}", {shared}, {members(fields)}}}\n'
    try:
        if not _waiting:
            asyncio.get_running_loop().call_later(_LATER, flush)
    except RuntimeError:
        _waiting.append(line)
        flush()
    else:
        _waiting.append(line)


def flush() -> None:
    """Writes the lines of requests that wait to be written together: each alone takes as long as making it."""
    lines = "".join(_waiting)
    _waiting.clear()
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
        out = stream()
        out.write(lines)
        out.flush()


@contextlib.contextmanager
def captured(level: str) -> Iterator[None]:
    """Makes JSON lines of all that this process writes to standard error, until the block ends.

    Args:
        level: As :func:`configure` takes it.
    """
    # Bars are drawn anew many times a second, each time a line.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    configure(level)
    with contextlib.ExitStack() as stack:
        stack.callback(_restore_root, logging.root.handlers, logging.root.level)
        logging.root.handlers = [_Handler()]
        logging.root.setLevel(max(logging.WARNING, getattr(logging, level.upper())))
        for logger in list(logging.root.manager.loggerDict.values()):
            if isinstance(logger, logging.Logger) and logger.name not in _NAMES and any(map(_prints, logger.handlers)):
                stack.callback(setattr, logger, "handlers", logger.handlers)
                stack.callback(setattr, logger, "propagate", logger.propagate)
                logger.handlers = [handler for handler in logger.handlers if not _prints(handler)]
                logger.propagate = True
        stack.callback(flush)
        logging.captureWarnings(True)
        stack.callback(logging.captureWarnings, False)
        stack.callback(setattr, sys, "excepthook", sys.excepthook)
        stack.callback(setattr, threading, "excepthook", threading.excepthook)
        stack.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
        sys.excepthook = lambda *error: _logger.critical("The process failed", exc_info=error)
        threading.excepthook = _thread_failed
        sys.unraisablehook = _unraisable
        stack.enter_context(_piped())
        yield


@contextlib.contextmanager
def _piped() -> Iterator[None]:
    """Puts a pipe in the place of standard error's descriptor."""
    global _original
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError, AttributeError, io.UnsupportedOperation):
        descriptor = -1
    if descriptor != 2 or _original is not None:  # a notebook's or a test's own
        yield
        return
    sys.stderr.flush()
    logging.getLogger(OTHERS).setLevel(logging.DEBUG)
    reading, writing = os.pipe()
    _original = os.fdopen(os.dup(2), "w", encoding="ascii", errors="backslashreplace")
    # A crash can't wait for a thread: what it leaves behind is worth more than its form.
    watched = faulthandler.is_enabled()
    faulthandler.enable(_original)
    os.dup2(writing, 2)
    os.close(writing)
    reader = threading.Thread(target=_read, args=(reading,), name="stderr", daemon=True)
    reader.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os.dup2(_original.fileno(), 2)  # closes the pipe's end
        reader.join(_ENDING)
        faulthandler.disable()
        if watched:
            faulthandler.enable()
        kept, _original = _original, None
        kept.close()


def _read(reading: int) -> None:
    rest = b""
    while chunk := os.read(reading, 1 << 16):
        *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
        if len(rest) > _LONGEST:
            lines, rest = [*lines, rest], b""
        for line in lines:
            _other(line)
    _other(rest)
    os.close(reading)


def _other(line: bytes) -> None:
    text = line.decode(errors="replace").strip()
    if text:
        # Never passed on as it is, even if it is JSON: it may hold what a client sent.
        logging.getLogger(OTHERS).warning("%s", text)


def _prints(handler: logging.Handler) -> bool:
    """Whether it writes text to where the lines go, as MLflow's own does."""
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)


def _restore_root(handlers: list[logging.Handler], level: int) -> None:
    logging.root.handlers = handlers
    logging.root.setLevel(level)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else "?"
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        _logger.error("The thread %s failed", name, exc_info=error)


def _unraisable(args: Any) -> None:
    error = (args.exc_type, args.exc_value, args.exc_traceback)
    _logger.error("%s: %r", args.err_msg or "Ignored", args.object, exc_info=error)


def _value(value: object) -> str:
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    plain = type(value) is int or (type(value) is float and math.isfinite(value))
    return repr(value) if plain else json.dumps(value)


def _moment(created: float) -> str:
    """A time in UTC; what it has in common with the last one's is not written anew."""
    global _second
    milliseconds = int(created * 1000)
    number, text = _second
    if number != milliseconds // 1000:
        number = milliseconds // 1000
        text = datetime.datetime.fromtimestamp(number, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _second = number, text
    return f"{text}.{milliseconds % 1000:03d}+00:00"
