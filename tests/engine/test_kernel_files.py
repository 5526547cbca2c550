from __future__ import annotations

import threading
import time

import pytest
from manifests import host

from mlflow_trt import cache
from mlflow_trt.engine import kernel_files

DIGEST = "ab" * 32


def test_folder_is_chosen_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path))
    assert cache.folder() == tmp_path
    monkeypatch.delenv("MLFLOW_TRT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(cache.folder()) == "/somewhere/mlflow-trt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(cache.folder()) == "/home/me/.cache/mlflow-trt"


@pytest.mark.parametrize(
    "other",
    [{"gpu": "NVIDIA A10"}, {"driver": "570.1"}, {"os": "windows"}],
)
def test_another_machine_has_another_file(other):
    path = kernel_files.path_for(DIGEST, "1.6.1.120", host())
    assert path != kernel_files.path_for(DIGEST, "1.6.1.120", host(**other))
    assert path != kernel_files.path_for(DIGEST, "1.4.0.76", host())
    assert path != kernel_files.path_for("cd" * 32, "1.6.1.120", host())


def test_a_newer_driver_of_the_same_major_shares_the_file():
    assert kernel_files.path_for(DIGEST, "1.6", host()) == kernel_files.path_for(DIGEST, "1.6", host(driver="580.1"))


def test_an_unknown_machine_has_a_file_too():
    path = kernel_files.path_for(DIGEST, "1.6", host(gpu=None, driver=None, cuda=None, os=None))
    assert path.name.endswith(".bin")


def test_round_trip_and_damage(tmp_path):
    path = tmp_path / "a/b.bin"
    assert kernel_files.read(path) is None
    assert kernel_files.write(path, b"compiled")
    assert kernel_files.read(path) == b"compiled"
    assert [p.name for p in path.parent.iterdir()] == ["b.bin"]
    content = path.read_bytes()
    for damaged in (content[:-1], content[:20], b"", content[:-1] + b"x", b"foreign"):
        path.write_bytes(damaged)
        assert kernel_files.read(path) is None


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    assert not kernel_files.write(tmp_path / "a.bin", b"x")
    assert list(tmp_path.iterdir()) == []


def test_keeper_saves_once_for_many_changes(tmp_path):
    calls = []
    keeper = kernel_files.Keeper(tmp_path / "k.bin", lambda: calls.append(1) or b"k", delay=0.05)
    for _ in range(20):
        keeper.change()
    deadline = time.monotonic() + 5
    while kernel_files.read(tmp_path / "k.bin") is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert kernel_files.read(tmp_path / "k.bin") == b"k"
    assert len(calls) == 1
    keeper.save()
    assert len(calls) == 1
    keeper.change()
    keeper.save()
    assert len(calls) == 2


def test_keeper_survives_whatever_serializing_does(tmp_path):
    def broken():
        raise RuntimeError("no CUDA context")

    keeper = kernel_files.Keeper(tmp_path / "k.bin", broken, delay=60)
    keeper.change()
    keeper.save()
    none = kernel_files.Keeper(tmp_path / "k.bin", lambda: None, delay=60)
    none.change()
    none.save()
    assert not (tmp_path / "k.bin").exists()


def test_noting_a_change_never_waits_for_a_saving(tmp_path):
    serializing, go_on = threading.Event(), threading.Event()

    def slow():
        serializing.set()
        go_on.wait(5)
        return b"k"

    keeper = kernel_files.Keeper(tmp_path / "k.bin", slow, delay=60)
    keeper.change()
    saving = threading.Thread(target=keeper.save)
    saving.start()
    assert serializing.wait(5)
    noting = threading.Thread(target=keeper.change)
    noting.start()
    noting.join(2)
    assert not noting.is_alive()
    go_on.set()
    saving.join()
    keeper.save()
