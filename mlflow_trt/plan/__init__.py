"""A plan, an engine at rest: its bytes, the manifest that describes them, and where they load.

Nothing here needs a GPU, and nothing imports torch or TensorRT.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .files import MODEL_PLAN as MODEL_PLAN
    from .files import RUNTIME_CACHE as RUNTIME_CACHE
    from .files import GoldenTensors as GoldenTensors
    from .files import Plan as Plan
    from .files import check_header as check_header
    from .files import check_plan as check_plan
    from .files import digest as digest
    from .files import folder_name as folder_name
    from .files import read_golden as read_golden
    from .files import read_header as read_header
    from .files import verify as verify
    from .files import write as write
    from .files import write_file as write_file
    from .files import write_files as write_files

__all__ = [
    "MODEL_PLAN",
    "RUNTIME_CACHE",
    "GoldenTensors",
    "Plan",
    "check_header",
    "check_plan",
    "digest",
    "folder_name",
    "read_golden",
    "read_header",
    "verify",
    "write",
    "write_file",
    "write_files",
]


def __getattr__(name: str) -> Any:
    # Lazily: the child process that builds without a GPU reads the table of dtypes, and has no time for the rest.
    if name in __all__:
        return getattr(import_module(f"{__name__}.files"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
