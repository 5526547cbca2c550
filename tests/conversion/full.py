"""The bindings of full TensorRT's builder, from PyPI (1 MB a release), over libraries that do nothing.

TensorRT itself, which they call, can't be had from PyPI. They load all the same where something of the libraries' names
is there, and have every class and call with its parameters; nothing can be built with them.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import wheels

RELEASES = ("10.15.1.29", "11.4.0.106")
"""The oldest and the newest of full TensorRT that is supported."""

_CALLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
"""What the bindings link to."""


def output(release: str, code: str, scratch: Path) -> str:
    """What Python prints where ``tensorrt_bindings`` of a release can be imported; fails where it fails.

    Args:
        release: One of :data:`RELEASES`.
        code: What to run.
        scratch: A folder for the libraries.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    bindings = wheels.folder(f"tensorrt-bindings-{release}", [f"tensorrt-cu13-bindings=={release}"])
    source = scratch / "nothing.c"
    source.write_text("".join(f"void *{call}(void) {{ return 0; }}\n" for call in _CALLS))
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        made = scratch / f"lib{library}.so.{release.split('.')[0]}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", made, source], check=True)
    return wheels.output(wheels.run([bindings], code, LD_LIBRARY_PATH=str(scratch)))
