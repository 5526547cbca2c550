"""A version is made ready to answer: fetched, checked, loaded on every device, compared with the model's own, and warm.

Nothing here knows what is served at the moment: either a version comes out that can take calls at its full speed, or
an error, and then nothing stays loaded.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ... import model_uri, store
from ...engine import load as load_engine
from ...errors import ParityError, StoreError, TrtError
from ...evidence.measure import made_up, made_up_points, measure_parity, points
from ...plan import host
from ...plan.api import Engine
from ...plan.batch_sizes import batch_sizes
from ...plan.compatibility import SelectedPlan
from ...plan.files import BETWEEN, GoldenTensors
from ...plan.manifest import FILE_NAME, Interface, Manifest, Profile, Tolerance
from ...plan.parity import text as parity_text
from ...plan.parity import tolerance_of
from ...plan.signature import CallSignature, Shapes, batch_size
from ..batching.batcher import Batcher
from ..batching.queue import Answer
from ..batching.rows import RowShapes, fitting, rows_are_independent
from ..config import LoadOptions
from ..served_model import ServedVersion
from . import last_served

Arrays = Mapping[str, np.ndarray]

_logger = logging.getLogger("mlflow_trt.serving")

_CALLS = 3
"""At each shape: the first compiles kernels, the second captures the CUDA graph, the third runs it."""


class DroppedError(TrtError):
    """The load was given up: the version is not wanted any more."""


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """A version whose engines are loaded; all about it stays as it is until it is closed."""

    info: ServedVersion
    manifest: Manifest
    devices: tuple[int, ...]
    engines: tuple[Engine, ...]
    """One for each device."""
    batcher: Batcher
    since: float
    """When it was ready, by ``time.time()``."""
    cached: bool = False
    """Whether the store was away, and all of it came from the cache."""

    def submit(self, inputs: Arrays, deadline: float | None = None, *, inline: bool = False) -> Future[Answer]:
        """Queues a request; see :meth:`Batcher.submit`."""
        return self.batcher.submit(inputs, deadline, inline=inline)

    def close(self) -> None:
        """Answers what waits, then frees the devices' memory. May be called again."""
        self.batcher.close()
        for engine in self.engines:
            try:
                engine.close()
            except Exception:
                _logger.exception("An engine of %s could not be closed", self.info.uri, extra={"event": "close_failed"})


def load_version(
    uri: str,
    options: LoadOptions,
    *,
    on_batch: Callable[[Answer], None] | None = None,
    unwanted: Callable[[], bool] = lambda: False,
) -> LoadedVersion:
    """Makes a version ready to answer.

    Of its files the manifest, the plan that this machine's GPU accepts (or the program, for the reference backend), the
    compiled kernels and the golden tensors are fetched. It is loaded on every device, its answers there are compared
    with the model's own, and every shape that it will be called with most has run often enough to be fast, in every
    execution context. Requests are joined only if the rows of a batch do not change each other's answers.

    Args:
        uri: A folder, or a URI that always means the same: ``models:/name/3``, not an alias.
        options: How it is loaded.
        on_batch: Called with what a batch got, see :class:`Batcher`.
        unwanted: Asked between the steps, from this thread.

    Raises:
        DroppedError: ``unwanted`` said so.
        ParityError: Its answers differ from the model's own on this machine.
        TrtError: Whatever else kept it from being loaded; in every case all that was loaded is closed again.
    """
    try:
        with ExitStack() as loaded:
            version = _load_version(uri, options, on_batch, partial(_go_on, uri, unwanted), loaded)
            loaded.pop_all()
            return version
    except TrtError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:500]
        raise TrtError(
            f"{uri} can't be made ready: {type(error).__name__}: {reason}",
            "a version that loads and answers",
            "see the server's log, and load it with mlflow_trt.load_model on this machine",
        ) from error


def _load_version(
    uri: str,
    options: LoadOptions,
    on_batch: Callable[[Answer], None] | None,
    go_on: Callable[[], None],
    loaded: ExitStack,
) -> LoadedVersion:
    model, mlmodel, cached = _open(uri, options)
    manifest = model.manifest
    selections = _selections(model, options)
    go_on()
    files = {file.path: file for selected in selections for file in model.files_to_load(selected)}
    folder = model.fetch(files.values())
    golden = model.golden()
    if golden is not None:
        # Not at a size between: no batch is padded to it, and a context for it would lie idle.
        golden = golden.without(BETWEEN)

    engines: list[Engine] = []
    for device, selected in zip(options.devices, selections):
        go_on()
        engine = load_engine(
            folder,
            manifest,
            device=device,
            backend=options.backend,
            max_contexts=options.max_contexts,
            memory_limit=options.memory_limit,
            selected=selected,
        )
        loaded.callback(engine.close)
        engines.append(engine)

    record = selections[0].record if selections[0] else None
    tolerance = tolerance_of(record or manifest.plans[0])
    for device, engine in zip(options.devices, engines):
        go_on()
        _compare(uri, engine, device, golden, tolerance)

    batching = options.batching and _joinable(uri, engines[0], golden, tolerance)
    info = ServedVersion(
        uri=uri,
        version=version_of(uri, folder),
        platform="reference" if record is None else f"{record.runtime}-{record.release}",
        interface=engines[0].interface,
        profiles=engines[0].profiles,
        mlmodel=mlmodel,
    )
    batcher = Batcher(
        engines,
        info,
        workers=options.max_contexts,
        batching=batching,
        delay=options.delay,
        max_queue=options.max_queue,
        on_batch=on_batch,
    )
    loaded.callback(batcher.close, drain=False)
    for engine in engines:
        calls = warm_up_calls(engine.interface, engine.profiles, _inputs(golden), batcher.sizes)
        _warm_up(engine, calls, options.max_contexts, go_on)
    go_on()
    if model.repository is not None and not cached:
        last_served.remember(uri, manifest=folder.name, mlmodel=mlmodel)
    return LoadedVersion(
        info=info,
        manifest=manifest,
        devices=options.devices,
        engines=tuple(engines),
        batcher=batcher,
        since=time.time(),
        cached=cached,
    )


def _open(uri: str, options: LoadOptions) -> tuple[store.StoredModel, str | None, bool]:
    """A model, its MLmodel, and whether both come from the cache because the store is away."""
    try:
        model = store.open_model(uri)
        return model, model.mlmodel(), False
    except StoreError as error:
        last = last_served.recall(uri) if options.offline_start and not last_served.answered(error) else {}
        if "manifest" not in last:
            raise
        _logger.warning(
            "%s is loaded from the cache, as it was served last: its store can't be reached (%s)",
            uri,
            error.found,
            extra={"event": "offline_start", "uri": uri},
        )
        return store.open_cached(uri, last["manifest"]), last.get("mlmodel"), True


def version_of(uri: str, folder: Path) -> str:
    """A registered version's number; for anything else 12 digits of its manifest's SHA-256.

    Args:
        uri: What is served.
        folder: Holds its manifest.
    """
    read = model_uri.parse(uri)
    if read is not None and read.version is not None:
        return read.version
    return hashlib.sha256((folder / FILE_NAME).read_bytes()).hexdigest()[:12]


def warm_up_calls(
    interface: Interface, profiles: Sequence[Profile], golden: Sequence[Arrays], sizes: Sequence[int]
) -> list[Arrays]:
    """Decides what an engine is called with before it gets real requests.

    Args:
        interface: The model's inputs.
        profiles: The engine's optimization profiles.
        golden: The inputs of golden points: their values are ones that the model takes.
        sizes: The batch sizes that the engine will be called with.

    Returns:
        Inputs of every golden point, of min, opt and max of every profile, and of every batch size with the other sizes
        of each profile's opt; each shape once.
    """
    call_signature = CallSignature(interface, profiles)
    pattern = max(golden, key=lambda inputs: batch_size(interface, inputs) or 0, default=None)
    calls = {tuple(inputs[name].shape for name in call_signature.names): inputs for inputs in reversed(golden)}
    wanted: list[Shapes] = []
    for _, point, shapes in points(interface, tuple(profiles) or ({},)):
        wanted.append(shapes)
        if sizes and point == "opt":
            row_shapes = tuple(shape[1:] for shape in shapes)
            wanted += [
                tuple((rows, *shape) for shape in row_shapes) for rows in fitting(call_signature, sizes, row_shapes)
            ]
    for shapes in wanted:
        if shapes in calls:
            continue
        if pattern is None:
            calls[shapes] = made_up(interface, shapes)
        else:
            # Repeats the values of the largest golden point: indices and masks among them stay valid.
            calls[shapes] = {name: np.resize(pattern[name], shape) for name, shape in zip(call_signature.names, shapes)}
    return list(calls.values())


def _selections(model: store.StoredModel, options: LoadOptions) -> list[SelectedPlan | None]:
    """For each device the plan that it loads; None: the reference backend loads none."""
    if options.backend != "tensorrt":
        return [None] * len(options.devices)
    for device in options.devices:
        host.check_index(device)
    return [model.select(host.probe(device)) for device in options.devices]


def _compare(uri: str, engine: Engine, device: int, golden: GoldenTensors | None, tolerance: Tolerance) -> None:
    if golden is None:
        _logger.warning(
            "%s has no golden tensors: its answers on device %d are not compared with the model's own",
            uri,
            device,
            extra={"event": "no_golden", "uri": uri, "device": device},
        )
        return
    parity = measure_parity(engine, golden, tolerance)
    if parity.status != "passed":
        raise ParityError(
            f"{uri} answers otherwise than the model on device {device}.\n{parity_text(parity)}",
            "answers within the tolerance that it was logged with",
            "convert it on this kind of GPU with this driver, and log it again",
        )


def _joinable(uri: str, engine: Engine, golden: GoldenTensors | None, tolerance: Tolerance) -> bool:
    """Whether requests may be joined: rows must not change each other's answers, at any shape that is at hand."""
    if not batch_sizes(engine.interface, engine.profiles):
        return False
    # Rows that repeat would hide a mean over the batch: so golden ones as they are, or else random ones.
    several = [inputs for inputs in _inputs(golden) if _rows(engine, inputs) > 1]
    several = several or [inputs for _, _, inputs in made_up_points(engine.interface, engine.profiles)]
    largest = {_row_shapes(inputs): inputs for inputs in sorted(several, key=lambda inputs: _rows(engine, inputs))}
    if all(rows_are_independent(engine, x, tolerance) for x in largest.values() if _rows(engine, x) > 1):
        return True
    _logger.warning(
        "Rows of a batch change each other's answers in %s: its requests are not joined",
        uri,
        extra={"event": "batching_off", "uri": uri},
    )
    return False


def _warm_up(engine: Engine, calls: Iterable[Arrays], contexts: int, go_on: Callable[[], None]) -> None:
    """Runs each call in every execution context: as many at once as there are contexts."""
    for inputs in calls:
        for _ in range(_CALLS):
            go_on()
            _at_once(partial(engine.predict, inputs), contexts)


def _at_once(call: Callable[[], object], count: int) -> None:
    # Threads of its own, not an executor's: a process that ends need not wait for kernels that are being compiled.
    together = threading.Barrier(count)
    errors: list[BaseException] = []

    def run() -> None:
        together.wait()
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, name="warm-up", daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _go_on(uri: str, unwanted: Callable[[], bool]) -> None:
    if unwanted():
        raise DroppedError(f"{uri} is not wanted any more.", "", "load it again when it is")


def _inputs(golden: GoldenTensors | None) -> list[Arrays]:
    return [inputs for _, _, inputs, _ in golden.points()] if golden else []


def _rows(engine: Engine, inputs: Arrays) -> int:
    return batch_size(engine.interface, inputs) or 0


def _row_shapes(inputs: Arrays) -> RowShapes:
    return tuple(array.shape[1:] for array in inputs.values())
