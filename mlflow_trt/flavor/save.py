"""The MLflow flavor ``mlflow_trt``, writing side: saves and logs a model whose weight is a raw TensorRT engine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import mlflow
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo

from .. import _mlflow
from ..errors import SettingError
from ..evidence import recorded
from ..model_uri import ModelUri
from . import cleanup, mlmodel
from .staging import MEASURE_TIMEOUT, ModelOrPlan, Staged, stage


def save_model(
    model_or_plan: ModelOrPlan,
    path: str | Path,
    inputs: Any = None,
    *,
    arg_inputs: Any = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    precision: str | None = None,
    enabled_precisions: Any = None,
    compute_capabilities: Sequence[Any] | None = None,
    output_names: Sequence[str] | None = None,
    golden_inputs: Any = None,
    tolerance: Any = None,
    converter: str | None = None,
    dims: Mapping[str, Any] | None = None,
    allow_pickle: bool = False,
    measure_timeout: float | None = MEASURE_TIMEOUT,
    program: Literal["include", "omit"] = "include",
    mlflow_model: Model | None = None,
    conda_env: Any = None,
    code_paths: list[str] | None = None,
    signature: ModelSignature | None = None,
    input_example: Any = None,
    pip_requirements: Any = None,
    extra_pip_requirements: Any = None,
    metadata: dict[str, Any] | None = None,
    extra_files: Any = None,
    **settings: Any,
) -> None:
    """Saves a model as a folder in MLflow's format; see :func:`log_model` for the arguments.

    Args:
        model_or_plan: What to save.
        path: A folder that does not exist yet, or is empty.
        inputs: The model's inputs; with the rest up to ``settings``, as :func:`mlflow_trt.convert` takes them.
        arg_inputs: Another name for ``inputs``.
        kwarg_inputs: Inputs by keyword.
        precision: The network's precision.
        enabled_precisions: The same in Torch-TensorRT's words.
        compute_capabilities: What to build for.
        output_names: Names for the outputs.
        golden_inputs: Real inputs for the parity check.
        tolerance: How far the engine may be from the model.
        converter: ``"auto"``, ``"torch_tensorrt"`` or ``"onnx"``.
        dims: Ranges by the names of dynamic dimensions, for a graph in ONNX.
        allow_pickle: Whether a model that MLflow holds as pickled code may be loaded.
        measure_timeout: Seconds that measuring on the GPU may take.
        program: Whether the exported program, or the graph in ONNX, is kept beside the engine.
        mlflow_model: The MLflow model that this flavor is added to.
        conda_env: As in every MLflow flavor; so are the rest.
        code_paths: Local code to copy along.
        signature: Default: made from the engine.
        input_example: An example to store.
        pip_requirements: Replaces the default requirements.
        extra_pip_requirements: Adds to them.
        metadata: Stored in MLmodel.
        extra_files: Files to copy along.
        **settings: Torch-TensorRT's compilation settings.

    Raises:
        TrtError: As in :func:`log_model`; nothing is left at ``path`` then.
    """
    conversion = _given(
        inputs=inputs,
        arg_inputs=arg_inputs,
        kwarg_inputs=kwarg_inputs,
        precision=precision,
        enabled_precisions=enabled_precisions,
        compute_capabilities=compute_capabilities,
        output_names=output_names,
        golden_inputs=golden_inputs,
        tolerance=tolerance,
        converter=converter,
        dims=dims,
        allow_pickle=allow_pickle or None,
        **settings,
    )
    _mlflow.validate_environment(conda_env, pip_requirements, extra_pip_requirements)
    existed = Path(path).exists()
    folder = _mlflow.prepare_folder(path)
    with cleanup.nothing_left_behind(folder, keep_folder=existed):
        staged = stage(model_or_plan, folder, program, measure_timeout, conversion)
        mlmodel.write(
            folder,
            staged.manifest,
            mlflow_model or Model(),
            signature=signature,
            metadata=metadata,
            conda_env=conda_env,
            code_paths=code_paths,
            input_example=input_example,
            pip_requirements=pip_requirements,
            extra_pip_requirements=extra_pip_requirements,
            extra_files=extra_files,
        )


def log_model(
    model_or_plan: ModelOrPlan,
    name: str | None = None,
    inputs: Any = None,
    *,
    arg_inputs: Any = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    precision: str | None = None,
    enabled_precisions: Any = None,
    compute_capabilities: Sequence[Any] | None = None,
    output_names: Sequence[str] | None = None,
    golden_inputs: Any = None,
    tolerance: Any = None,
    converter: str | None = None,
    dims: Mapping[str, Any] | None = None,
    allow_pickle: bool = False,
    measure_timeout: float | None = MEASURE_TIMEOUT,
    program: Literal["include", "omit"] = "include",
    artifact_path: str | None = None,
    conda_env: Any = None,
    code_paths: list[str] | None = None,
    registered_model_name: str | None = None,
    signature: ModelSignature | None = None,
    input_example: Any = None,
    await_registration_for: int | None = 300,
    pip_requirements: Any = None,
    extra_pip_requirements: Any = None,
    metadata: dict[str, Any] | None = None,
    extra_files: Any = None,
    params: dict[str, Any] | None = None,
    tags: dict[str, Any] | None = None,
    model_type: str | None = None,
    step: int = 0,
    model_id: str | None = None,
    run_id: str | None = None,
    **settings: Any,
) -> ModelInfo:
    """Converts a model where needed, checks it, and logs it to MLflow.

    The model is converted, written and, on a GPU, compared with the model before MLflow is asked for anything: when one
    of these fails, no run and no logged model has been touched. Where no run is active, one is started for the figures.

    Args:
        model_or_plan: An ``nn.Module``, an ``ExportedProgram`` or a graph in ONNX (its file, bytes or ``ModelProto``),
            which is converted first; a :class:`~mlflow_trt.Plan` or several of one model (for other capabilities,
            releases or runtimes; the loader takes the first that its host accepts), a folder that :func:`save_model`
            wrote, or the bytes or path of an engine that another program built. Or the URI of a model of MLflow's
            flavor ``pytorch`` or ``onnx`` (converted first), see :func:`mlflow_trt.convert`: it becomes an input of
            the run, and its version is in the manifest and the tag ``mlflow_trt.source``.
        name: The model's name in MLflow.
        inputs: The model's inputs; with the rest up to ``converter``, as :func:`mlflow_trt.convert` takes them. Only
            for a model that is still to be converted.
        arg_inputs: Another name for ``inputs``.
        kwarg_inputs: Inputs by keyword.
        precision: ``"fp32"``, ``"tf32"``, ``"fp16"`` or ``"bf16"``; None: the model's own.
        enabled_precisions: The same in Torch-TensorRT's words.
        compute_capabilities: What to build for; None: this machine's GPU, or without one all that the runtime supports.
        output_names: Names for the outputs.
        golden_inputs: Real inputs for the parity check.
        tolerance: How far the engine may be from the model; default: by precision.
        converter: ``"torch_tensorrt"``, ``"onnx"``, or ``"auto"``, the default: the first and, where that can't convert
            the whole model, the second.
        dims: For a graph in ONNX: by the name of a dynamic dimension a size, or (min, opt, max).
        allow_pickle: Whether a model that was logged as pickled Python code, which can do anything, may be loaded.
        measure_timeout: Seconds that measuring a plan on the GPU may take; figures that are missing then are recorded
            as not measured. None: any time.
        program: ``"omit"`` leaves the exported program, or the graph, out: half the size, but no reference backend.
        artifact_path: MLflow's deprecated word for ``name``.
        conda_env: As in every MLflow flavor; so are the rest.
        code_paths: Local code to copy along.
        registered_model_name: Registers a version under this name.
        signature: Default: made from the engine.
        input_example: An example to store. A large one slows every pyfunc load; the signature needs none.
        await_registration_for: Seconds to wait for the registration.
        pip_requirements: Replaces the default requirements, which pin the exact TensorRT release.
        extra_pip_requirements: Adds to them.
        metadata: Stored in MLmodel.
        extra_files: Files to copy along.
        params: Parameters of the logged model, beside this package's own.
        tags: Tags of the logged model and of the registered version, beside this package's own.
        model_type: As in every MLflow flavor.
        step: The run's step at which the model is logged.
        model_id: An existing logged model to fill.
        run_id: The run to log to; default: the active one.
        **settings: Torch-TensorRT's compilation settings (``optimization_level=5``), checked by name.

    Returns:
        MLflow's description of the logged model: ``model_uri``, ``model_id``, ``registered_model_version``.

    Raises:
        ConversionError: The model can't be exported or built.
        ParityError: On a GPU: the engine's answers differ from the model's own beyond the tolerance; shows the table.
        PlanError: The bytes are no whole engine.
        SettingError: An argument is unknown or contradicts another.
        StoreError: MLflow's server or the artifact store broke off; the logged model is deleted again.
    """
    conversion = _given(
        inputs=inputs,
        arg_inputs=arg_inputs,
        kwarg_inputs=kwarg_inputs,
        precision=precision,
        enabled_precisions=enabled_precisions,
        compute_capabilities=compute_capabilities,
        output_names=output_names,
        golden_inputs=golden_inputs,
        tolerance=tolerance,
        converter=converter,
        dims=dims,
        allow_pickle=allow_pickle or None,
        **settings,
    )
    _mlflow.validate_environment(conda_env, pip_requirements, extra_pip_requirements)
    if name is not None and artifact_path is not None:
        raise SettingError("Both name and artifact_path were given.", "one of them", "leave out artifact_path")
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-") as scratch:
        staged = stage(model_or_plan, Path(scratch), program, measure_timeout, conversion)
        model_tags = {**recorded.tags(staged.manifest), **(tags or {})}
        flavor = _Flavor(staged)
        with cleanup.own_run(run_id) as run, cleanup.deleted_on_failure(flavor, given=model_id):
            info: ModelInfo = Model.log(
                artifact_path=None,
                name=name or artifact_path or "model",
                flavor=flavor,
                run_id=run,
                conda_env=conda_env,
                code_paths=code_paths,
                signature=signature,
                input_example=input_example,
                pip_requirements=pip_requirements,
                extra_pip_requirements=extra_pip_requirements,
                metadata=metadata,
                extra_files=extra_files,
                params={**recorded.params(staged.manifest), **(params or {})},
                tags=model_tags,
                model_type=model_type,
                step=step,
                model_id=model_id,
            )
            recorded.log(info, run, staged.manifest, staged.measurements, step=step)
            if registered_model_name is not None:
                # Last, so that no version ever points to a model that is not whole.
                uri = str(ModelUri(model_id=info.model_id))
                registered = mlflow.register_model(uri, registered_model_name, await_registration_for, tags=model_tags)
                info.registered_model_version = registered.version
    return info


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


class _Flavor:
    """What ``Model.log`` calls; remembers the logged model that MLflow made, which ``Model.log`` hides on failure."""

    __name__ = mlmodel.FLAVOR_NAME
    model_id: str | None = None

    def __init__(self, staged: Staged) -> None:
        self._staged = staged

    def save_model(self, path: str, mlflow_model: Model, **arguments: Any) -> None:
        self.model_id = mlflow_model.model_id
        folder = _mlflow.prepare_folder(path)
        for entry in self._staged.folder.iterdir():
            shutil.move(str(entry), folder / entry.name)
        mlmodel.write(folder, self._staged.manifest, mlflow_model, **arguments)
