"""MLflow models whose weight is a raw TensorRT engine.

A PyTorch model or a graph in ONNX goes in (:func:`convert`, :func:`log_model`); a model version comes out that is
described by its shape profile, its real precision and the hosts it loads on; that same version is loaded
(:func:`load_model`), checked (:func:`check`, :func:`inspect`), measured (:func:`benchmark`), promoted (:func:`promote`,
:func:`rollback`) and served (:func:`serve`).

Every name is resolved at first use: importing this package imports neither torch nor TensorRT.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .engine import Engine as Engine
    from .errors import BusyError as BusyError
    from .errors import CompatibilityError as CompatibilityError
    from .errors import ConversionError as ConversionError
    from .errors import DeadlineError as DeadlineError
    from .errors import DeviceError as DeviceError
    from .errors import InputError as InputError
    from .errors import ManifestError as ManifestError
    from .errors import ParityError as ParityError
    from .errors import PlanError as PlanError
    from .errors import PrecisionError as PrecisionError
    from .errors import PromotionError as PromotionError
    from .errors import SettingError as SettingError
    from .errors import StoreError as StoreError
    from .errors import TrtError as TrtError
    from .errors import UnsupportedOperatorError as UnsupportedOperatorError
    from .flavor.benchmark import BenchmarkReport as BenchmarkReport
    from .flavor.benchmark import benchmark as benchmark
    from .flavor.convert import convert as convert
    from .flavor.inspection import check as check
    from .flavor.inspection import inspect as inspect
    from .flavor.load import load_model as load_model
    from .flavor.save import log_model as log_model
    from .flavor.save import save_model as save_model
    from .inputs import Input as Input
    from .plan.files import Plan as Plan
    from .plan.manifest import Host as Host
    from .plan.manifest import Manifest as Manifest
    from .plan.manifest import Tolerance as Tolerance
    from .registry import check_fleet as check_fleet
    from .registry import check_upgrade as check_upgrade
    from .registry import promote as promote
    from .registry import rollback as rollback
    from .serving.server import serve as serve

_HOMES = {
    "flavor.benchmark": ("benchmark", "BenchmarkReport"),
    "flavor.convert": ("convert",),
    "errors": (
        "BusyError",
        "CompatibilityError",
        "ConversionError",
        "DeadlineError",
        "DeviceError",
        "InputError",
        "ManifestError",
        "ParityError",
        "PlanError",
        "PrecisionError",
        "PromotionError",
        "SettingError",
        "StoreError",
        "TrtError",
        "UnsupportedOperatorError",
    ),
    "flavor.save": ("log_model", "save_model"),
    "inputs": ("Input",),
    "flavor.inspection": ("check", "inspect"),
    "flavor.load": ("load_model", "_load_pyfunc"),
    "plan.manifest": ("Host", "Manifest", "Tolerance"),
    "plan": ("Plan",),
    "registry": ("check_fleet", "check_upgrade", "promote", "rollback"),
    "engine": ("Engine",),
    "serving.server": ("serve",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(name for name in _HOME if not name.startswith("_"))


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
