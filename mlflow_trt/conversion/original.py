"""The caller's module, called as they would call it, and left as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from .program import evaluation

_REGISTRIES = ("_parameters", "_buffers", "_modules")


@contextlib.contextmanager
def undisturbed(module: torch.nn.Module) -> Iterator[None]:
    """Runs in evaluation mode, eagerly; afterwards mode, attributes, buffers and random numbers are as before.

    The fused path of ``nn.TransformerEncoder`` is off: it leaves out what a padding mask hides, and answers zeros.
    """
    devices = {t.device.index for t in (*module.parameters(), *module.buffers()) if t.device.type == "cuda"}
    fused = torch.backends.mha.get_fastpath_enabled()
    with (
        evaluation(module),
        torch.random.fork_rng(devices=[index for index in devices if index is not None]),
        torch.compiler.set_stance("force_eager"),
    ):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)


def call(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls a module; what it changes in itself, such as a cached table or a counter, is put back."""
    attributes = [
        (m, dict(vars(m)), {name: dict(vars(m)[name]) for name in _REGISTRIES})
        for m in module.modules()
        if not isinstance(m, torch.jit.ScriptModule)
    ]
    buffers = [(b, b._version, b.detach().clone()) for b in module.buffers() if not b.is_inference()]
    try:
        return module(*args, **kwargs)
    finally:
        for m, own, registries in attributes:
            vars(m).clear()
            vars(m).update(own)
            for name, entries in registries.items():
                vars(m)[name].clear()
                vars(m)[name].update(entries)
        with torch.no_grad():
            for buffer, version, before in buffers:
                if buffer._version != version:
                    buffer.copy_(before)
