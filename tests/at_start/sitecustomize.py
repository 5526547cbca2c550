"""Python imports this at its start where a test put this folder on the path: a program's builders start warm.

See warm.py. The program itself is as ever; how it starts a building child is changed as soon as it has imported that.
"""

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

MODULE = "mlflow_trt.conversion.child_process"


class Finder:
    """Finds one module, once, and changes it when it is loaded."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(Finder)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            sys.path.append(str(Path(__file__).parents[1]))
            try:
                import warm
            finally:
                sys.path.pop()
            address, fresh = Path(os.environ[warm.ADDRESS]), module._command
            module._command = lambda child, job: warm.command(lambda: address, fresh, child, job)

        spec.loader.exec_module = load_and_change
        return spec


if "MLFLOW_TRT_TESTS_BUILDERS" in os.environ:
    sys.meta_path.insert(0, Finder)
