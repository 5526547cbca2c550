"""The table of dtypes is the only one, and its rows agree with numpy, torch and TensorRT."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mlflow_trt
from mlflow_trt.inputs import DTYPES
from mlflow_trt.plan import dtypes

PACKAGE = Path(mlflow_trt.__file__).parent
HOME = PACKAGE / "plan" / "dtypes.py"

NAMES = {
    name
    for d in dtypes.TABLE
    for name in (d.name, d.tensorrt, d.torch_tensorrt, d.torch_alias, d.precision, d.protocol, d.contents, d.triton)
    if name is not None
}

MOST = 3
"""Dtypes that a decision may name side by side; more are a table."""


def tables(source):
    """The literals that hold more than a few names of dtypes: what a second table looks like."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            inside = [*node.keys, *node.values]
        elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            inside = node.elts
        else:
            continue
        named = {e.value for e in inside if isinstance(e, ast.Constant) and isinstance(e.value, str)} & NAMES
        if len(named) > MOST:
            yield node.lineno, sorted(named)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_has_a_table_of_dtypes(path):
    if path != HOME:
        assert list(tables(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        '{"FP16": "float16", "FP32": "float32"}',
        'x = ("bool", "int8", "uint8", "int32")',
        '{"TYPE_INT8": 1, "TYPE_INT32": 2, "TYPE_FP16": 3, "TYPE_FP32": 4}',
        '["HALF", "FLOAT", "INT8", "BOOL"]',
    ],
)
def test_a_second_table_is_seen(source):
    assert list(tables(source))


def test_rows_are_told_apart():
    for column in ("name", "tensorrt", "torch_tensorrt", "torch_alias", "precision", "protocol", "triton"):
        names = [getattr(d, column) for d in dtypes.TABLE if getattr(d, column) is not None]
        assert len(names) == len(set(names)), column


def test_numpy_holds_what_is_named_after_it():
    for d in dtypes.TABLE:
        if d.storage is not None and d.caller is None:
            assert np.dtype(d.name) == d.storage
    assert dtypes.STORAGE["bfloat16"].itemsize == 2
    assert tuple(dtypes.STORAGE) == DTYPES


def test_torch_has_them_by_these_names():
    torch = pytest.importorskip("torch")
    for name, storage in dtypes.STORAGE.items():
        assert getattr(torch, name).itemsize == storage.itemsize
    for d in dtypes.TABLE:
        if d.torch_alias:
            assert getattr(torch, d.torch_alias) is getattr(torch, d.name)


def test_names_of_others_are_translated():
    assert dtypes.tensorrt_name("HALF") == dtypes.tensorrt_name("half") == "float16"
    assert dtypes.tensorrt_name("float32") == "float32"
    assert dtypes.tensorrt_name("NEW") == "new"
    assert dtypes.torch_name("long") == "int64"
    assert dtypes.torch_tensorrt_name("bf16") == "bfloat16"
    assert dtypes.torch_name("f16") == "f16"
    assert dtypes.DTYPE_OF == {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    assert dtypes.CALLERS["bfloat16"] == "float32"


def test_the_table_brings_neither_mlflow_nor_torch():
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, mlflow_trt.plan.dtypes; print(sorted({'mlflow', 'torch', 'pydantic'} & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[]"
