"""What is served: a name, the version that answers, and how the next one takes its place between two requests.

Two threads belong to a watched model: the :class:`~.alias_watcher.AliasWatcher`, which knows what the alias names, and
the loader, which makes that version ready, swaps it in, and closes the old one once it has answered what waits. So at
most two versions are on a GPU, and what needs so much memory that two are too many keeps the old one serving.

When a version that could not be made ready is tried again is said in :mod:`.failed_load`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np

from ... import model_uri
from ...errors import BusyError, TrtError
from ..batching.queue import Answer
from ..config import LoadOptions
from ..served_model import ServedVersion
from . import last_served
from .alias_watcher import PATIENCE, AliasWatcher, Outcome, resolve, watched_alias
from .failed_load import FailedLoad
from .loading import DroppedError, LoadedVersion, load_version

_logger = logging.getLogger("mlflow_trt.serving")

_ENDING = 10.0
"""Seconds that close() waits for a load under way to notice; a download that hangs is left to end by itself."""


class Model:
    """A model under the name that clients call it by.

    Args:
        name: That name.
        uri: Any URI that MLflow takes for a model. ``models:/name@alias`` and ``models:/name/latest`` are watched.
        options: How its versions are loaded.
        interval: Seconds between two looks at the registry.
        on_batch: Called with what each batch got, from the thread that ran it.
    """

    def __init__(
        self,
        name: str,
        uri: str,
        options: LoadOptions,
        *,
        interval: float = 5.0,
        on_batch: Callable[[Answer], None] | None = None,
    ) -> None:
        self.name = name
        self.uri = uri
        self._target = target = watched_alias(uri)
        self._options = options
        self._interval = interval
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._current: LoadedVersion | None = None
        self._wanted = None if target else uri
        self._loading: str | None = None
        self._unloading: str | None = None
        self._failure: FailedLoad | None = None
        self._away: TrtError | None = None
        self._checked_at: float | None = None
        self._again = False
        self._attempted = False
        self._swaps = self._failures = 0
        self._closed = False
        self._watcher = AliasWatcher(lambda: resolve(target), self._looked, interval, PATIENCE) if target else None
        self._loader = threading.Thread(target=self._load_all, name=f"model-{name}", daemon=True)

    @property
    def registered_model(self) -> str | None:
        """The registered model whose aliases decide what is served; None: the URI always means the same."""
        return self._target.name if self._target else None

    @property
    def current(self) -> ServedVersion:
        """The version that answers now.

        Raises:
            BusyError: None has been made ready yet, or the model was closed.
        """
        return self.loaded.info

    @property
    def loaded(self) -> LoadedVersion:
        """The same, with its engines; raises the same."""
        version = self._current
        if version is None or self._closed:
            raise self._not_ready()
        return version

    @property
    def failure(self) -> TrtError | None:
        """Why what the URI means now can't be served, or can't be known; None: it is, or is being made ready."""
        failed = self._failure
        return failed.error if failed is not None else self._away

    @property
    def _hopeless(self) -> TrtError | None:
        """Why nothing is being made ready; None: something is."""
        failed = self._failure
        return failed.error if failed is not None else self._away if self._wanted is None else None

    def start(self) -> None:
        """Begins to load and to watch, in the background."""
        if self._watcher is not None:
            self._watcher.start()
        self._loader.start()

    def wait(self, timeout: float | None = None) -> ServedVersion:
        """Waits until the first version answers. If it fails, the model goes on trying all the same.

        Args:
            timeout: Seconds; None: as long as it takes.

        Returns:
            The version.

        Raises:
            TrtError: What kept it from being made ready, or the registry from being read.
            BusyError: The time is over, or the model was closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._current or self._hopeless, timeout)
        failure = self._hopeless
        if self._current is None and not self._closed and failure is not None:
            raise failure
        return self.current

    def submit(
        self, inputs: Mapping[str, np.ndarray], deadline: float | None = None, *, inline: bool = False
    ) -> Future[Answer]:
        """See :meth:`.served_model.ServedModel.submit`."""
        while True:
            version = self.loaded
            try:
                return version.submit(inputs, deadline, inline=inline)
            except BusyError:
                # It may have been replaced since; then the next one takes the request.
                if version is self._current:
                    raise

    def refresh(self) -> None:
        """Has the registry looked at now, and a version that failed tried again. Returns before that is done."""
        if self._watcher is not None:
            self._again = True
            self._watcher.refresh()
            return
        with self._changed:
            self._failure = self._failure and self._failure.at_once()
            self._changed.notify_all()

    def status(self) -> dict[str, Any]:
        """How things stand, fit for JSON.

        Returns:
            ``name``, ``uri``; ``state``: ``"loading"``, ``"ready"``, ``"failed"`` (none answers, and the last attempt
            failed) or ``"closed"``; ``attempted``: whether a first attempt has ended; ``cached``: whether the version
            was loaded from the cache because the registry was away; ``version``, ``platform`` and ``since`` of the one
            that answers; ``preparing``: the URI of the one being made ready; ``unloading``: the version that still
            answers what waits before it frees its memory; ``last_failure``: ``version``, ``type``, ``error`` and
            ``when`` of the one that the alias names, as long as it can't be served; ``registry_failure``: why the
            registry can't be read now; ``checked_at``: when it last could; ``swaps`` and ``failures``: how many since
            the start; ``waiting``: requests in the queue. Times are seconds since 1970.
        """
        with self._changed:
            current, failure = self._current, self._failure
            if self._closed:
                state = "closed"
            elif current is not None:
                state = "ready"
            else:
                state = "failed" if self._hopeless else "loading"
            self._attempted |= state != "loading"
            return {
                "name": self.name,
                "uri": self.uri,
                "state": state,
                "attempted": self._attempted,
                "cached": current is not None and current.cached,
                "version": current and current.info.version,
                "platform": current and current.info.platform,
                "since": current and current.since,
                "preparing": self._loading,
                "unloading": self._unloading,
                "last_failure": failure
                and {
                    "version": _short(failure.uri),
                    "type": type(failure.error).__name__,
                    "error": failure.error.found,
                    "when": failure.when,
                },
                "registry_failure": self._away and self._away.found,
                "checked_at": self._checked_at,
                "swaps": self._swaps,
                "failures": self._failures,
                "waiting": current.batcher.depth if current else 0,
            }

    def close(self) -> None:
        """Refuses further requests, answers those that wait, frees the devices' memory, and ends its threads."""
        with self._changed:
            self._closed = True
            current = self._current
            self._changed.notify_all()
        if self._watcher is not None:
            self._watcher.close()
        if current is not None:
            current.close()
        if self._loader.is_alive():
            self._loader.join(_ENDING)
            if self._loader.is_alive():
                self._log(logging.WARNING, "close_waits", "A load under way does not end; it is left to itself")

    def _looked(self, outcome: Outcome) -> None:
        """Takes what a look of the watcher brought."""
        with self._changed:
            was_away, before = self._away, self._wanted
            if isinstance(outcome, TrtError):
                self._away = outcome
                last = self._last(outcome)
                self._wanted = self._wanted or last
            else:
                self._away, self._wanted, self._checked_at = None, outcome, time.time()
                if self._failure is not None and (self._again or self._failure.uri != outcome):
                    self._failure = None
                self._again = False
            self._changed.notify_all()
        if isinstance(outcome, TrtError):
            if last is not None:
                text = "The registry can't be reached: the version that was served last is loaded from the cache"
                self._log(logging.WARNING, "offline_start", text, version=_short(last), error=outcome.found)
            level = logging.DEBUG if was_away else logging.WARNING  # the first of many equal ones
            self._log(level, "registry_away", "The registry can't be read; what is served stays", error=outcome.found)
        else:
            if was_away:
                self._log(logging.INFO, "registry_back", "The registry can be read again")
            if before is not None and outcome != before:
                self._log(
                    logging.INFO, "alias_moved", "The alias moved", version=_short(outcome), before=_short(before)
                )

    def _last(self, error: TrtError) -> str | None:
        """The version that was served last, if a first one is wanted and the registry gave no answer."""
        if not self._options.offline_start or self._wanted is not None or last_served.answered(error):
            return None
        return last_served.recall(self.uri).get("version")

    def _load_all(self) -> None:
        while (uri := self._next()) is not None:
            self._load(uri)

    def _next(self) -> str | None:
        """Waits for a version to make ready; None: there will be no further one."""
        with self._changed:
            while not self._closed and (self._target or self._current is None):
                pause = math.inf
                if self._wanted is not None and (self._current is None or self._current.info.uri != self._wanted):
                    failed = self._failure is not None and self._failure.uri == self._wanted
                    pause = self._failure.again_at - time.monotonic() if failed and self._failure else 0.0
                    if pause <= 0:
                        self._loading = self._wanted
                        return self._wanted
                self._changed.wait(None if pause == math.inf else pause)
            return None

    def _load(self, uri: str) -> None:
        """Makes a version ready and swaps it in, unless it failed or is not wanted any more."""
        begin = time.monotonic()
        self._log(logging.INFO, "loading", "Making a version ready", version=_short(uri))
        try:
            options = replace(self._options, offline_start=self._options.offline_start and self._current is None)
            version = load_version(uri, options, on_batch=self._on_batch, unwanted=lambda: self._unwanted(uri))
        except DroppedError:
            self._dropped(uri)
        except TrtError as error:
            self._failed(uri, error)
        else:
            if self._watcher is not None and self._current is not None:
                # So that a version from which the alias was just taken away answers not even once.
                self._watcher.fresh(PATIENCE)
            self._swap(uri, version, time.monotonic() - begin)

    def _unwanted(self, uri: str) -> bool:
        return self._closed or uri != self._wanted

    def _swap(self, uri: str, version: LoadedVersion, seconds: float) -> None:
        with self._changed:
            old: LoadedVersion | None = version
            if not (unwanted := self._unwanted(uri)):
                old, self._current = self._current, version
                self._swaps += old is not None
                self._failure = None
            self._loading = None
            self._unloading = old.info.version if old else None
            self._changed.notify_all()
        if unwanted:
            self._dropped(uri)
        else:
            before = old.info.version if old else None
            if self._target is not None and not version.cached:
                last_served.remember(self.uri, version=uri)
            text = f"A version answers, made ready in {seconds:.1f} s on {version.info.platform}"
            self._log(logging.INFO, "serving", text, version=version.info.version, before=before, seconds=seconds)
        if old is not None:
            old.close()
            self._unloading = None
            self._log(logging.INFO, "unloaded", "A version was unloaded", version=old.info.version)

    def _dropped(self, uri: str) -> None:
        self._loading = None
        self._log(logging.INFO, "dropped", "A version is not wanted any more and was not served", version=_short(uri))

    def _failed(self, uri: str, error: TrtError) -> None:
        _logger.debug("Why %s could not be made ready", uri, exc_info=error)
        with self._changed:
            unwanted = self._unwanted(uri)
            failed = FailedLoad.after(self._failure, uri, error, self._interval)
            if not unwanted:
                self._failure = failed
                self._failures += 1
            self._loading = None
            current = self._current
            self._changed.notify_all()
        if unwanted:
            self._dropped(uri)
            return
        text = f"Version {current.info.version} keeps serving: another" if current else "Nothing is served: a version"
        again = f"; tried again in {failed.pause:.0f} s" if failed.pause < math.inf else ""
        self._log(
            logging.ERROR,
            "failed",
            f"{text} could not be made ready{again}",
            version=_short(uri),
            error=str(error.message),
            error_type=type(error).__name__,
            attempts=failed.attempts,
        )

    def _not_ready(self) -> BusyError:
        if self._closed:
            state = "is closed"
        elif self.failure:
            state = "could not be loaded yet"
        else:
            state = "is being loaded"
        return BusyError(f"The model {self.name} {state}.", "a model that is ready", "try again a little later")

    def _log(self, level: int, event: str, text: str, **fields: Any) -> None:
        shown = ", ".join(f"{key} {value}" for key, value in fields.items() if key in ("version", "before", "error"))
        extra = {"event": event, "model": self.name, "uri": self.uri, **fields}
        _logger.log(level, "%s: %s%s", self.name, text, f" ({shown})" if shown else "", extra=extra)


def _short(uri: str) -> str:
    """The version in ``models:/name/3``; any other URI as it is."""
    read = model_uri.parse(uri)
    return (read and read.version) or uri
