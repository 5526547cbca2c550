"""What this machine is, as far as it decides where an engine loads.

Probing never raises: on a machine without a driver, a GPU or a TensorRT runtime the field is None, and
``compatibility`` says what that means. Nothing of TensorRT or torch is imported to find out.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.metadata
import logging
import platform
import re
import subprocess
import sys
from pathlib import Path

from ..errors import DeviceError, SettingError
from .manifest import Host
from .targets import RUNTIMES, parse_capability

_logger = logging.getLogger(__name__)

_LINUX_DRIVER = Path("/proc/driver/nvidia/version")


def probe(device: int = 0) -> Host:
    """Describes this machine.

    Args:
        device: Index of the GPU, as CUDA counts them (``CUDA_VISIBLE_DEVICES`` applies).

    Returns:
        What was found. Fields that could not be found are None, for whatever reason: this never raises.
    """
    gpu, capability, cuda = _gpu(device)
    return Host(
        gpu=gpu,
        capability=capability,
        driver=driver_version(),
        cuda=cuda,
        os=platform.system().lower() or None,
        machine={"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
        or None,
        runtimes={name: release for name in RUNTIMES if (release := runtime_release(name))},
        torch=_version("torch"),
        torch_tensorrt=_version("torch_tensorrt_rtx") or _version("torch_tensorrt"),
    )


def check_index(device: int) -> None:
    """Refuses the index of a GPU that is not there, where there are others.

    Where there is none at all, every plan is refused for that reason, which tells more.

    Raises:
        DeviceError: CUDA sees GPUs, and none of this index.
    """
    try:
        from cuda.bindings import runtime

        error, count = runtime.cudaGetDeviceCount()
    except Exception:
        return
    if int(error) == 0 and count and not 0 <= device < count:
        raise DeviceError(
            f"There is no GPU of index {device}: CUDA sees {count}.",
            f"device=0 to {count - 1}" if count > 1 else "device=0",
            "choose one of these; CUDA_VISIBLE_DEVICES decides which GPUs a process sees and how they are counted",
        )


def runtime_release(name: str) -> str | None:
    """Returns the installed release of a TensorRT runtime, ``"1.6.1.120"``, or None.

    Args:
        name: ``"tensorrt_rtx"``, ``"tensorrt"`` or ``"tensorrt_lean"``.
    """
    module = module_of(name)
    if module is None:
        return None
    for distribution in RUNTIMES[name].distributions:
        if version := _version(distribution):
            return version
    return _ask_in_child(module)


def module_of(name: str) -> str | None:
    """Returns the module to import for a TensorRT runtime, or None if it is not installed."""
    modules = RUNTIMES[name].modules if name in RUNTIMES else (name,)
    return next((module for module in modules if _is_installed(module)), None)


def pip_install(name: str, release: str | None) -> str:
    """Returns the command that installs a TensorRT runtime.

    Args:
        name: ``"tensorrt_rtx"``, ``"tensorrt"`` or ``"tensorrt_lean"``.
        release: Which; None: the newest.
    """
    wanted = f"=={release}" if release else ""
    packages = RUNTIMES[name].packages if name in RUNTIMES else (name,)
    return "pip install " + " ".join(package + wanted for package in packages)


def driver_version() -> str | None:
    """Returns the version of NVIDIA's driver, ``"580.95.05"``, or None."""
    try:
        # "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build ..."
        match = re.search(r"NVRM.*?\s(\d+(?:\.\d+)+)\s", _LINUX_DRIVER.read_text())
        if match:
            return match.group(1)
    except OSError:
        pass
    return _nvml_driver_version()


def parse_host(text: str) -> Host:
    """Reads a machine from a line of text.

    Args:
        text: Fields with commas between them: ``tensorrt_rtx==1.6.1.120`` (one or more runtimes), a compute
            capability as ``sm_89`` or ``8.9``, and ``os=``, ``machine=``, ``gpu=``, ``driver=``, ``cuda=``.

    Returns:
        The machine; what the text does not name is None.

    Raises:
        SettingError: A field is none of these, or given twice.
    """
    fields: dict[str, str] = {}
    runtimes: dict[str, str] = {}
    for part in (p.strip() for p in text.split(",")):
        if match := re.fullmatch(r"(tensorrt(?:[_-](?:rtx|lean))?)==(\d+(?:\.\d+){1,3})", part):
            target, key, value = runtimes, match[1].replace("-", "_"), match[2]
        elif re.fullmatch(r"sm_?\d{2,3}[af]?|\d{1,2}\.\d", part) and (
            capability := parse_capability(part.rstrip("af"))
        ):
            target, key, value = fields, "capability", capability
        elif match := re.fullmatch(r"(os|machine|gpu|driver|cuda)=(.+)", part):
            target, key, value = fields, match[1], match[2].lower() if match[1] in ("os", "machine") else match[2]
        else:
            raise SettingError(
                f"The host {text!r} has the field {part!r}.",
                "runtime==release, sm_XX or X.Y, os=, machine=, gpu=, driver=, cuda=",
                "write it like tensorrt_rtx==1.6.1.120,sm_89",
            )
        if key in target:
            raise SettingError(
                f"The host {text!r} names the {key} twice.", "each field once", "leave one of the two out"
            )
        target[key] = value
    return Host(runtimes=runtimes, **fields)


def _gpu(device: int) -> tuple[str | None, str | None, str | None]:
    """(name, compute capability, newest CUDA version of the driver)."""
    try:
        from cuda.bindings import runtime

        error, version = runtime.cudaDriverGetVersion()
        cuda = f"{version // 1000}.{version % 1000 // 10}" if int(error) == 0 and version else None
        error, count = runtime.cudaGetDeviceCount()
        if int(error) != 0 or not 0 <= device < count:
            return None, None, cuda
        error, properties = runtime.cudaGetDeviceProperties(device)
        if int(error) != 0:
            return None, None, cuda
        name = bytes(properties.name).split(b"\0", 1)[0].decode("utf-8", "replace")
        return name, f"{properties.major}.{properties.minor}", cuda
    except Exception as error:  # cuda-bindings raises its own kinds, and RuntimeError, where libraries are missing
        _logger.debug("No GPU could be found: %s", error)
        return None, None, None


def _nvml_driver_version() -> str | None:
    try:
        library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        if library.nvmlInit_v2() != 0:
            return None
        try:
            text = ctypes.create_string_buffer(96)
            failed = library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(96))
            return None if failed else text.value.decode() or None
        finally:
            library.nvmlShutdown()
    except (OSError, AttributeError):
        return None


def _is_installed(module: str) -> bool:
    # Not importlib.util.find_spec: torch_tensorrt puts tensorrt_rtx into sys.modules under the name tensorrt.
    try:
        return importlib.machinery.PathFinder.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ask_in_child(name: str) -> str | None:
    """A module without metadata (copied into place) says its release only when imported, which may fail badly."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}; print({name}.__version__)"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
