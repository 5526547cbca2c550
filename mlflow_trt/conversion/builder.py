"""What both converters ask of TensorRT's builder: optimization profiles, targets, and to be told how far it is."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from ..plan.targets import sm
from .job import Job, ProgressListener

TORCH_TENSORRTS_LOGGER = "torch_tensorrt [TensorRT Conversion Context]"


class Messages(logging.Handler):
    """Keeps TensorRT's own error messages, as Torch-TensorRT's logger is told them."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage().strip()[:500])


class Watch(Protocol):
    """Who listens to a build, and whether it was interrupted."""

    listener: ProgressListener | None
    interrupted: bool


def profiles(builder: Any, job: Job) -> list[Any]:
    """One optimization profile per index. Torch-TensorRT builds several from 2.13 on only; this way serves all."""
    made = []
    for index in range(job.profiles):
        profile = builder.create_optimization_profile()
        for spec in job.inputs:
            if all(p == (spec.profiles[0][0],) * 3 for p in spec.profiles):
                continue
            profile.set_shape(spec.name, *spec.profiles[index if len(spec.profiles) > 1 else 0])
        made.append(profile)
    return made


def configure(trt: Any, config: Any, job: Job, watch: Watch) -> None:
    """Sets what is the same for every engine: its targets, what its layers tell, and who listens to the build."""
    # The engine inspector names dtypes and tactics only if the builder wrote them down.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = _monitor(trt, watch)
    if job.capabilities:
        config.num_compute_capabilities = len(job.capabilities)
        for i, capability in enumerate(job.capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, sm(capability).upper()), i)


def _monitor(trt: Any, watch: Watch) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells of the build's phases, and stops it at Ctrl-C: the only place where Python runs during a build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._tell("start", phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell("step", phase_name, step)
            return not watch.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._tell("finish", phase_name, 0)

        def _tell(self, event: str, phase: str, steps: int) -> None:
            try:
                if watch.listener is not None:
                    watch.listener(event, phase, steps)
            except KeyboardInterrupt:
                # Must not cross TensorRT's C++: the next step tells it to stop.
                watch.interrupted = True
            except Exception:
                watch.listener = None  # a display that fails is no reason to lose the engine

    return Monitor()
