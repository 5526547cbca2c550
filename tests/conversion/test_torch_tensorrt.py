"""The builder in this process, as on a machine with a GPU: the program goes in as it is, through no file."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch", reason="needs the conversion extra")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")


@pytest.fixture(scope="module")
def built(run_module):
    done = run_module("conversion.built_in_process")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_bindings_of_the_network(built):
    assert built["inputs"] == [
        ["x", "float32"],
        ["pair_m", "float32"],
        ["pair_n", "float32"],
        ["ids", "int64"],
        ["mask", "bool"],
    ]
    assert built["outputs"] == [
        ["y", "float32", [-1, 5]],
        ["again.4", "int64", []],  # a size: TensorRT's own is a vector of one
        ["again.5.left", "float32", [-1, 3]],
        ["more.0", "float32", [-1, 8]],
        ["more.1", "bool", [-1, 6]],
        ["more.2", "int64", [-1]],
        ["more.4", "float32", [3]],
        ["more.5", "float32", []],
        ["more.6", "bool", [-1, 5]],
    ]


def test_progress_is_told(built):
    assert built["events"] == ["finish", "start", "step"]


def test_upstreams_interpreter_is_back_in_place(built):
    assert built["hook"] == "torch_tensorrt.dynamo.conversion._TRTInterpreter"


def test_interrupt_ends_the_build(built):
    """Ctrl-C during TensorRT's own work: Python runs there in the progress monitor only."""
    assert built["ended"] == "KeyboardInterrupt"
