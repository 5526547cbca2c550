"""What is given to be converted: taken out of what wraps it, or refused with what to pass instead."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram

from ..errors import SettingError

_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
"""Classes of torch that hold a module and call it, and where they hold it."""


def subject(model: Any) -> torch.nn.Module | ExportedProgram:
    """The module or exported program itself.

    Args:
        model: What the caller gave. A module that ``torch.compile`` or ``DataParallel`` wraps is taken out.

    Raises:
        SettingError: It is neither, or a module that has no weights yet, or holds TorchScript.
    """
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise SettingError(
            f"The model is TorchScript ({type(model).__name__}), which torch.export can't read.",
            "the torch.nn.Module that was traced or scripted, or a torch.export.ExportedProgram",
            "pass that module itself, with the weights loaded: module.load_state_dict(scripted.state_dict())",
        )
    if isinstance(model, ExportedProgram):
        return model
    if not isinstance(model, torch.nn.Module):
        raise SettingError(
            f"The model is a {type(model).__name__}.",
            "a torch.nn.Module or a torch.export.ExportedProgram",
            "pass the model itself; an ONNX file or TorchScript module cannot be converted here",
        )
    while (attribute := _wrapped(model)) is not None:
        model = getattr(model, attribute)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise SettingError(
                f"The model's part {name} is TorchScript, which torch.export can't read.",
                "a torch.nn.Module throughout",
                "put the module that was traced or scripted in its place",
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise SettingError(
                f"The parameter {name} of a lazy module has no shape yet.",
                "a module whose weights are there",
                "call the model once, and load its weights",
            )
        if tensor.is_meta:
            raise SettingError(
                f"{name} is on the meta device: it has a shape and no values.",
                "a module whose weights are there",
                "load the weights: model.to_empty(device='cpu'), then model.load_state_dict(...)",
            )
    return model  # type: ignore[no-any-return]


def _wrapped(model: torch.nn.Module) -> str | None:
    """The attribute that holds the wrapped module; torch's own classes by name, as importing them costs seconds."""
    for kind in type(model).__mro__:
        if kind.__module__.startswith("torch.") and kind.__name__ in _WRAPPERS:
            return _WRAPPERS[kind.__name__]
    return None
