"""A plan, an engine at rest: its bytes, the manifest that describes them, and where they load.

Nothing here needs a GPU, and nothing imports torch or TensorRT.
"""

from .files import (
    MODEL_PLAN,
    RUNTIME_CACHE,
    GoldenTensors,
    Plan,
    check_header,
    digest,
    folder_name,
    read_golden,
    read_header,
    verify,
    write,
    write_file,
    write_files,
)

__all__ = [
    "MODEL_PLAN",
    "RUNTIME_CACHE",
    "GoldenTensors",
    "Plan",
    "check_header",
    "digest",
    "folder_name",
    "read_golden",
    "read_header",
    "verify",
    "write",
    "write_file",
    "write_files",
]
