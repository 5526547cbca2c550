# ruff: noqa: E402
"""A graph in ONNX is told from a plan, a program and a URI."""

from __future__ import annotations

import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx")

import stored_models

from mlflow_trt.flavor.sources.graphs import is_graph


def test_in_memory():
    graph = stored_models.graph()
    graph.ir_version = 10
    assert is_graph(graph)
    assert is_graph(graph.SerializeToString())
    assert not is_graph(b"ftrt" + bytes(60))
    assert not is_graph(object())
    assert not is_graph([graph])


def test_as_a_file(tmp_path):
    graph = stored_models.graph()
    for name in ("m.onnx", "m.bin"):
        onnx.save(graph, tmp_path / name)
        assert is_graph(tmp_path / name)
        assert is_graph(str(tmp_path / name))
    (tmp_path / "page.onnx").write_text("<html>")  # is told as a graph's fault
    assert is_graph(tmp_path / "page.onnx")
    assert is_graph(tmp_path / "missing.onnx")
    (tmp_path / "m.engine").write_bytes(b"vtrt" + bytes(60))
    assert not is_graph(tmp_path / "m.engine")


@pytest.mark.parametrize("uri", ["models:/net.onnx/3", "models:/m@a", "runs:/1/model.onnx", "net", "net.pt2", "a:b"])
def test_what_is_none(uri):
    assert not is_graph(uri)
