"""The measuring child: loads the one plan of a manifest on the GPU, and compares and times it.

``python -m mlflow_trt.evidence.measuring_child FOLDER`` reads job.json there: the manifest, which need not be written
yet, and where its files are. An engine that hangs in TensorRT, or crashes it, ends this process and not the one that
logs the model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..conversion.child_process import Say, serve

JOB = "job.json"


def _measure(folder: Path, say: Say) -> dict[str, Any]:
    """Says each figure as soon as it is there, so that what comes before the time is up counts."""
    from .. import plan, store
    from ..engine import load as load_engine
    from ..plan import manifest as _manifest
    from ..plan import parity
    from . import measure

    job = json.loads((folder / JOB).read_text())
    model = store.StoredModel(job["model"], _manifest.parse(job["manifest"]), Path(job["model"]))
    record = model.manifest.plans[0]

    def listener(event: str, phase: str, steps: int) -> None:
        say({"progress": [event, phase, steps]})

    @contextmanager
    def step(name: str) -> Iterator[None]:
        say({"doing": name})
        begin = time.monotonic()
        yield
        say({"done": name, "seconds": round(time.monotonic() - begin, 3)})

    with step("load"):
        engine = load_engine(model.folder, model.manifest)
    with engine:
        golden = model.golden()
        if golden is not None:
            tolerance = parity.tolerance_of(record)
            with step("parity"):
                compared = measure.measure_parity(engine, golden, tolerance, listener)
            say({"parity": compared.model_dump(mode="json")})
            if compared.status == "failed":
                return {}
        with step("latency"):
            timed = measure.measure_latency(engine, golden, listener=listener)
        say({"latency": timed.model_dump(mode="json")})
        with step("latency_by_batch"):
            curve = measure.latency_by_batch(engine, listener=listener)
        say({"latency_by_batch": curve, "layers": engine.layers()})
        cache = engine.runtime_cache()
        if cache:
            path = f"{Path(record.file.path).parent.as_posix()}/{plan.RUNTIME_CACHE}"
            say({"runtime_cache": plan.write_file(model.folder, path, cache).model_dump(mode="json")})
    return {}


if __name__ == "__main__":
    serve(_measure)
