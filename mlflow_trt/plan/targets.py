"""What an engine is built for: TensorRT's runtimes, their releases, and compute capabilities, as they are spelled.

A capability is ``"8.9"`` everywhere in this package. NVIDIA's compilers say ``sm_89``, names of folders ``sm89``, and
TensorRT ``SM89``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""What ``tensorrt_rtx.ComputeCapability`` names (releases 1.4 to 1.7), and so what a plan can be built for by name; in
the order of their bits in a plan's header."""

_NUMBER = re.compile(r"(\d{1,2})\.?(\d)")
"""A compute capability with its dot or, as in sm89, without."""


@dataclass(frozen=True)
class Installed:
    """A TensorRT runtime as Python sees it installed."""

    name: str
    distributions: tuple[str, ...]
    """Those that bring the module, the one with the compiled bindings first: the others only pull it in, and a front
    package may be installed in another release than the bindings that answer."""
    modules: tuple[str, ...]
    """The modules to import, the first that is there."""
    packages: tuple[str, ...]
    """What pip installs it by."""


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Installed(
            "tensorrt_rtx",
            ("tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu12_bindings", "tensorrt_rtx_cu13", "tensorrt_rtx"),
            ("tensorrt_rtx",),
            ("tensorrt_rtx",),
        ),
        Installed(
            "tensorrt",
            ("tensorrt_cu13_bindings", "tensorrt_cu12_bindings", "tensorrt_cu13", "tensorrt_cu12", "tensorrt"),
            ("tensorrt",),
            ("tensorrt",),
        ),
        # NVIDIA's lean runtime of full TensorRT. PyPI has wheels of its bindings and libraries; the package
        # `tensorrt_lean` in front of them, which only passes their names on, comes from NVIDIA's own index, or with its
        # Debian packages.
        Installed(
            "tensorrt_lean",
            ("tensorrt_lean_cu13_bindings", "tensorrt_lean_cu12_bindings", "tensorrt_lean"),
            ("tensorrt_lean_bindings", "tensorrt_lean"),
            ("tensorrt-lean-cu13-bindings", "tensorrt-lean-cu13-libs"),
        ),
    )
}

LOADED_BY = {"tensorrt_rtx": ("tensorrt_rtx",), "tensorrt": ("tensorrt", "tensorrt_lean")}
"""A plan's runtime → the installed ones that may load it, the first first."""


def numbers(version: str) -> tuple[int, ...]:
    """Returns a release or a compute capability as numbers, to be compared: ``(1, 6, 1, 120)``, ``(8, 9)``.

    What can't be read is older than anything.
    """
    try:
        return Version(version).release
    except InvalidVersion:
        return (0,)


def parse_capability(value: object) -> str | None:
    """Reads ``"8.9"``, ``8.9``, ``"sm89"``, ``"SM_89"`` or ``(8, 9)``; None: it is none of these."""
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return f"{value[0]}.{value[1]}"
    match = _NUMBER.fullmatch(str(value).strip().lower().removeprefix("sm").strip("_ "))
    return f"{int(match[1])}.{match[2]}" if match else None


def sm(capability: str) -> str:
    """Spells a compute capability as names of folders do: ``"sm89"``."""
    return "sm" + capability.replace(".", "")


def architecture(capability: str) -> str:
    """Spells a compute capability as NVIDIA's compilers and the text of a host do: ``"sm_89"``."""
    return sm(capability).replace("sm", "sm_")
