"""The cache's folder, and files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_trt import cache


def test_the_folder_is_what_the_environment_says(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    assert cache.folder() == Path.home() / ".cache" / "mlflow-trt"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/caches")
    assert cache.folder() == Path("/var/caches/mlflow-trt")
    monkeypatch.setenv(cache.VARIABLE, "~/mine")
    assert cache.folder() == Path.home() / "mine"


def test_a_file_is_replaced_in_one_step_and_its_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "kernels.bin"
    cache.write_atomic(path, b"old")
    with path.open("rb") as reader:
        cache.write_atomic(path, b"new content")
        assert reader.read() == b"old"

    assert path.read_bytes() == b"new content"
    assert [entry.name for entry in path.parent.iterdir()] == ["kernels.bin"]


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "kernels.bin"
    cache.write_atomic(path, b"old")

    def fails(self, target):
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="no space"):
        cache.write_atomic(path, b"new")

    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kernels.bin"]
