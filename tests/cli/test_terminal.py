"""Results alone reach standard output, as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from manifests import MANIFEST

from mlflow_trt.cli import terminal

from .commands import run


def test_a_shape_is_not_taken_for_markup(folder):
    """Rich would swallow [batch] or [1:8] as a style."""
    tensor = MANIFEST.interface.inputs[1].model_copy(update={"name": "[bold]"})
    interface = MANIFEST.interface.model_copy(update={"inputs": (tensor,)})
    Path(folder, "manifest.json").write_text(MANIFEST.model_copy(update={"interface": interface}).to_json())

    assert "[bold]" in run("inspect", folder).stdout


def test_what_libraries_write_to_the_descriptor_is_not_in_the_json():
    code = (
        "import os, sys\n"
        "from mlflow_trt.cli import terminal\n"
        "with terminal.results() as stdout:\n"
        "    os.write(1, b'from a library\\n'); print('from Python')\n"
        "    terminal.show_json(stdout, {'a': 1})\n"
        "print('after')\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout == '{\n  "a": 1\n}\nafter\n'
    assert set(found.stderr.split("\n")) >= {"from a library", "from Python"}


def test_without_a_descriptor_what_python_prints_is_kept_apart(capsys):
    """As in a test, or in a notebook."""
    with terminal.results() as stdout:
        print("chatter")
        terminal.show_json(stdout, {"a": [1]})
    print("after")
    printed = capsys.readouterr()
    assert printed.err == "chatter\n"
    assert printed.out.endswith("after\n")
    assert json.loads(printed.out.removesuffix("after\n")) == {"a": [1]}


def test_an_error_gives_standard_output_back():
    code = (
        "import sys\n"
        "from mlflow_trt.cli import terminal\n"
        "try:\n"
        "    with terminal.results() as stdout:\n"
        "        print('chatter'); raise ValueError\n"
        "except ValueError:\n"
        "    print('after')\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("after\n", "chatter\n")
