"""The only file that touches MLflow's private helpers: what every built-in flavor calls to write a model's folder.

Seen in mlflow 3.10 to 3.17, in the same modules and with the same arguments. A new MLflow that moves one breaks here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from mlflow import pyfunc
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.models.utils import _save_example
from mlflow.utils.environment import (
    _CONDA_ENV_FILE_NAME,
    _CONSTRAINTS_FILE_NAME,
    _PYTHON_ENV_FILE_NAME,
    _REQUIREMENTS_FILE_NAME,
    _process_conda_env,
    _process_pip_requirements,
    _PythonEnv,
    _validate_env_arguments,
)
from mlflow.utils.model_utils import (
    _copy_extra_files,
    _validate_and_copy_code_paths,
    _validate_and_prepare_target_save_path,
)

__all__ = ["prepare_folder", "validate_environment", "write_model"]


def prepare_folder(path: str | Path) -> Path:
    """Makes the folder a model is saved to; MLflow's own error if it exists and is not empty."""
    absolute = os.path.abspath(path)
    _validate_and_prepare_target_save_path(absolute)
    return Path(absolute)


def validate_environment(conda_env: Any, pip_requirements: Any, extra_pip_requirements: Any) -> None:
    """MLflow's own error for combinations that exclude each other."""
    _validate_env_arguments(conda_env, pip_requirements, extra_pip_requirements)


def write_model(
    folder: Path,
    model: Model,
    *,
    flavor: str,
    configuration: Mapping[str, Any],
    loader_module: str,
    model_config: Mapping[str, Any],
    requirements: Sequence[str],
    conda_env: Any = None,
    code_paths: list[str] | None = None,
    input_example: Any = None,
    pip_requirements: Any = None,
    extra_pip_requirements: Any = None,
    extra_files: Any = None,
) -> None:
    """Writes MLmodel and the environment files beside what the folder holds already.

    Args:
        folder: The model's folder.
        model: Gets the flavors; its signature and metadata are set already.
        flavor: The flavor's key.
        configuration: What MLmodel says under that key.
        loader_module: The module whose ``_load_pyfunc`` loads the folder.
        model_config: Defaults that ``mlflow.pyfunc.load_model(model_config=...)`` may override.
        requirements: The default pip requirements, pinned; nothing is inferred, since that would load the model.
        conda_env: As in every MLflow flavor; so are the rest.
        code_paths: Local code to copy along.
        input_example: An example to store.
        pip_requirements: Replaces the default requirements.
        extra_pip_requirements: Adds to them.
        extra_files: Files to copy along.
    """
    code = _validate_and_copy_code_paths(code_paths, str(folder))
    if input_example is not None:
        _save_example(model, input_example, str(folder))
    extra_files_configuration = _copy_extra_files(extra_files, str(folder))
    pyfunc.add_to_model(
        model,
        loader_module=loader_module,
        code=code,
        conda_env=_CONDA_ENV_FILE_NAME,
        python_env=_PYTHON_ENV_FILE_NAME,
        model_config=dict(model_config),
    )
    model.add_flavor(flavor, code=code, **configuration, **extra_files_configuration)
    model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if conda_env is None:
        defaults = list(requirements) if pip_requirements is None else None
        conda_env, packages, constraints = _process_pip_requirements(defaults, pip_requirements, extra_pip_requirements)
    else:
        conda_env, packages, constraints = _process_conda_env(conda_env)
    (folder / _CONDA_ENV_FILE_NAME).write_text(yaml.safe_dump(conda_env, default_flow_style=False))
    if constraints:
        (folder / _CONSTRAINTS_FILE_NAME).write_text("\n".join(constraints))
    (folder / _REQUIREMENTS_FILE_NAME).write_text("\n".join(packages))
    _PythonEnv.current().to_yaml(str(folder / _PYTHON_ENV_FILE_NAME))
    # Last: a folder without MLmodel is no model.
    model.save(str(folder / MLMODEL_FILE_NAME))
