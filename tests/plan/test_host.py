from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mlflow_trt.errors import DeviceError
from mlflow_trt.plan import host


def cuda(monkeypatch, **functions):
    """Stands for cuda-bindings on machines with other GPUs than this one."""
    from cuda.bindings import runtime

    for name, function in functions.items():
        monkeypatch.setattr(runtime, name, function)


PROPERTIES = SimpleNamespace(name=b"NVIDIA H100 80GB HBM3\0\0", major=9, minor=0)


def test_probe_of_this_machine_never_raises():
    found = host.probe()
    assert found.os
    assert found.machine
    assert host.probe(99).gpu is None


def test_probe_of_a_gpu(monkeypatch):
    cuda(
        monkeypatch,
        cudaDriverGetVersion=lambda: (0, 13000),
        cudaGetDeviceCount=lambda: (0, 2),
        cudaGetDeviceProperties=lambda device: (0, PROPERTIES),
    )
    found = host.probe(1)
    assert (found.gpu, found.capability, found.cuda) == ("NVIDIA H100 80GB HBM3", "9.0", "13.0")
    assert host.probe(2).gpu is None
    assert host.probe(-1).gpu is None


def raising(*args):
    raise RuntimeError("libcuda.so.1 is missing")


@pytest.mark.parametrize(
    "functions",
    [
        {"cudaDriverGetVersion": raising},
        {"cudaGetDeviceCount": raising},
        {"cudaGetDeviceCount": lambda: (35, None)},
        {"cudaGetDeviceCount": lambda: (0, 0)},
        {"cudaGetDeviceCount": lambda: (0, 1), "cudaGetDeviceProperties": lambda d: (1, None)},
    ],
)
def test_probe_without_driver_or_gpu(monkeypatch, functions):
    cuda(monkeypatch, **functions)
    found = host.probe()
    assert (found.gpu, found.capability) == (None, None)


def test_index_too_high(monkeypatch):
    cuda(monkeypatch, cudaGetDeviceCount=lambda: (0, 2))
    host.check_index(1)
    for index in (2, -1):
        with pytest.raises(DeviceError, match="CUDA sees 2"):
            host.check_index(index)
    cuda(monkeypatch, cudaGetDeviceCount=lambda: (35, None))
    host.check_index(0)
    cuda(monkeypatch, cudaGetDeviceCount=raising)
    host.check_index(0)


def test_device_is_required_before_tensorrt_is_called(monkeypatch):
    from mlflow_trt.engine import cuda as calls

    cuda(monkeypatch, cudaGetDeviceCount=lambda: (calls.cudart.cudaError_t.cudaErrorInsufficientDriver, None))
    with pytest.raises(DeviceError, match="driver") as caught:
        calls.require_device(0)
    assert "nvidia-smi" in caught.value.remedy
    cuda(monkeypatch, cudaGetDeviceCount=lambda: (calls.SUCCESS, 0))
    with pytest.raises(DeviceError, match="sees no GPU"):
        calls.require_device(0)
    cuda(monkeypatch, cudaGetDeviceCount=lambda: (calls.SUCCESS, 1))
    calls.require_device(0)
    with pytest.raises(DeviceError, match="index 1"):
        calls.require_device(1)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n", "550.54.15"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (d@x)\n"
            "GCC version:  gcc version 13.3.0\n",
            "580.95.05",
        ),
    ],
)
def test_driver_version_of_linux(monkeypatch, tmp_path, text, version):
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(host, "_LINUX_DRIVER", tmp_path / "version")
    assert host.driver_version() == version


def test_no_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "_LINUX_DRIVER", tmp_path / "none")
    monkeypatch.setattr(host, "_nvml_driver_version", lambda: None)
    assert host.driver_version() is None


def test_release_is_found_without_importing(monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    code = (
        "import sys; from mlflow_trt.plan import host; found = host.probe(); "
        "assert found.runtimes.get('tensorrt_rtx'), found; "
        "print([m for m in ('tensorrt_rtx', 'tensorrt_rtx_bindings', 'torch', 'torch_tensorrt') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def module(folder, name, version):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(f"__version__ = {version!r}\n")


def test_release_of_a_module_without_metadata(monkeypatch, tmp_path):
    module(tmp_path, "tensorrt", "10.15.1.29")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert host.runtime_release("tensorrt") == "10.15.1.29"


def test_metadata_of_the_bindings_comes_first(monkeypatch):
    def version(name):
        known = {"tensorrt_rtx_cu13_bindings": "1.4.0.76", "tensorrt_rtx": "1.6.1.120"}
        if name not in known:
            raise importlib.metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", lambda name: object())
    assert host.runtime_release("tensorrt_rtx") == "1.4.0.76"


def test_an_alias_in_sys_modules_is_not_an_installation(monkeypatch):
    # torch_tensorrt puts tensorrt_rtx there under this name.
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="1.6.1.120", __spec__=None))
    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", lambda name: None)
    assert host.runtime_release("tensorrt") is None
