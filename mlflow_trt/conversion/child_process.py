"""A process of its own for work that may hang, crash or need another torch: both of its ends.

The child says on its standard output, one JSON object a line, how far it is and what came of it. It ends with its
parent, and the parent ends it when its time is up.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Say = Callable[[Mapping[str, Any]], None]


class TookTooLongError(Exception):
    """The child was stopped at its time limit; the message holds its last words."""


class DiedError(Exception):
    """The child ended without a result.

    Attributes:
        signal: The signal that ended it, ``"SIGKILL"``, or None.
        os_error: What the system refused it, if that was its end.
        tail: Its last words, to follow a sentence.
    """

    def __init__(self, text: str, *, signal: str | None = None, os_error: str | None = None, tail: str = "") -> None:
        super().__init__(text)
        self.signal = signal
        self.os_error = os_error
        self.tail = tail


def run(
    module: str,
    folder: Path,
    *,
    timeout: float | None,
    environment: Mapping[str, str],
    heard: Callable[[dict[str, Any]], None],
) -> Any:
    """Runs ``python -m MODULE FOLDER`` to its end.

    Args:
        module: Its ``__main__`` calls :func:`serve`.
        folder: What it works on.
        timeout: Seconds that it may take; None: any time.
        environment: Its variables.
        heard: Is given what the child says before its result.

    Returns:
        Its result.

    Raises:
        TookTooLongError: It had not finished in time and was stopped.
        DiedError: It ended without a result.
        TrtError: What it raised itself.
    """
    with (folder / f"{module.rpartition('.')[2]}.stderr").open("w+b") as stderr:
        log = Path(stderr.name)
        child = subprocess.Popen(
            _command(module, folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C is for this process, which then ends the child
        )
    lines: queue.Queue[bytes | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(child, lines), daemon=True)
    reader.start()
    outcome: dict[str, Any] = {}
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        while (line := _next(lines, deadline)) is not None:
            message = json.loads(line)
            if "result" in message or "error" in message:
                outcome = message
            else:
                heard(message)
        status = child.wait()
    except queue.Empty:
        raise TookTooLongError(_tail(log)) from None
    finally:
        child.kill()
        child.wait()
        reader.join()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()
        words = _tail(log)
        log.unlink(missing_ok=True)
    if "result" in outcome:
        return outcome["result"]
    raise _failure(outcome.get("error"), status, words)


def serve(work: Callable[[Path, Say], Any]) -> None:
    """The child's end: does the work on the folder that the command line names, and ends the process.

    Args:
        work: ``(folder, say)``; what it returns or raises reaches the parent, JSON both.
    """
    say = _private_stdout()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        say({"result": work(Path(sys.argv[1]), say)})
    except BaseException as error:
        say({"error": _describe(error)})
        sys.exit(1)  # the parent reads what was printed last
    # All is written. Taking down an interpreter with all this in it would keep the parent waiting, and may crash.
    os._exit(0)


def package_on_path(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables with which a child finds this package where this process has it from."""
    paths = [str(Path(__file__).parent.parent), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def _command(module: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", module, str(folder)]


def _read(child: subprocess.Popen[bytes], lines: queue.Queue[bytes | None]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line)
    lines.put(None)


def _next(lines: queue.Queue[bytes | None], deadline: float | None) -> bytes | None:
    if deadline is None:
        return lines.get()
    return lines.get(timeout=max(0.0, deadline - time.monotonic()))


def _failure(error: dict[str, Any] | None, status: int, tail: str) -> Exception:
    if error and "type" in error:
        from .. import errors

        arguments: Iterable[Any] = (tuple(a) if isinstance(a, list) else a for a in error["arguments"])
        return getattr(errors, error["type"])(*arguments)  # type: ignore[no-any-return]
    if error and "os" in error:
        return DiedError(error["os"], os_error=error["os"], tail=tail)
    if error:
        return DiedError(f"failed: {error['other']}", tail=tail)
    if status < 0:
        name = signal.Signals(-status).name if -status in signal.valid_signals() else f"signal {-status}"
        return DiedError(f"was ended by {name}", signal=name, tail=tail)
    return DiedError(f"ended with status {status} and no result", tail=tail)


def _tail(log: Path, lines: int = 12) -> str:
    try:
        text = log.read_bytes()[-8000:].decode(errors="replace").strip()
    except OSError as error:
        return f" (its messages can't be read: {errno.errorcode.get(error.errno or 0, error)})"
    last = text.splitlines()[-lines:]
    return "\nIts last words:\n  " + "\n  ".join(last) if last else ""


def _private_stdout() -> Say:
    """Keeps standard output for the parent; whatever else prints goes to standard error."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")

    return say


def _end_with_parent() -> None:
    # The parent holds the other end open for as long as it lives.
    with contextlib.suppress(OSError):
        sys.stdin.buffer.read()
    os._exit(1)


def _describe(error: BaseException) -> dict[str, Any]:
    """An error as JSON: our own by class and parts, any other by its words."""
    errors = sys.modules.get("mlflow_trt.errors")  # if the work never needed them, this is none of them
    if errors and isinstance(error, errors.TrtError):
        kind, arguments = error.__reduce__()
        assert isinstance(kind, type)
        return {"type": kind.__name__, "arguments": list(arguments)}
    traceback.print_exc()
    if isinstance(error, OSError):
        return {"os": f"{error.strerror or error} ({error.filename or 'temporary file'})"}
    return {"other": f"{type(error).__name__}: {error}"}
