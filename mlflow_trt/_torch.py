"""The only file that touches torch's private modules: operators, fake tensors, trees, and what registered an operator.

Seen in torch 2.11 to 2.14, in the same modules. A new torch that moves one breaks here. It imports torch, so only what
needs torch anyway may import it.
"""

from __future__ import annotations

from typing import Any

from torch._dispatch.python import enable_python_dispatcher
from torch._library import custom_ops, simple_registry
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree

__all__ = [
    "FakeTensor",
    "HigherOrderOperator",
    "OpOverload",
    "enable_python_dispatcher",
    "module_of_custom_op",
    "pytree",
    "sources_of_fake",
]


def module_of_custom_op(name: str) -> str | None:
    """Returns the module that defined ``"namespace::operator"`` by ``torch.library.custom_op``; None: none did."""
    definition = getattr(custom_ops, "OPDEFS", {}).get(name)
    return getattr(getattr(definition, "_init_fn", None), "__module__", None)


def sources_of_fake(name: str) -> set[str]:
    """Returns the files in which ``torch.library.register_fake`` was called for ``"namespace::operator"``."""
    fake: Any = simple_registry.singleton.find(name).fake_impl
    kernels = getattr(fake, "kernels", None) or [getattr(fake, "kernel", None)]
    return {str(getattr(kernel, "source", "")).rpartition(":")[0] for kernel in kernels} - {""}
