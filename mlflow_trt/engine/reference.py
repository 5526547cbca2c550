"""The logged program, run on the CPU behind an engine's interface: by PyTorch or, a graph in ONNX, by ONNX Runtime.

Chosen by the user, never silently: to try a version where there is no GPU, or to compare an engine with what it was
built from. The one place in this package where running a model imports torch.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from ..errors import DeviceError, InputError, ManifestError, SettingError
from ..plan.api import Backend, Result
from ..plan.files import verify_program
from ..plan.manifest import Branch, InputLeaf, Interface, Manifest, Profile, Structure, TensorLeaf
from ..plan.pytree import leaves
from ..plan.signature import CallSignature
from .tensors import kind_of, to_host, to_torch

_logger = logging.getLogger(__name__)

_alone = threading.Lock()
"""PyTorch's own state while it reads a program is one for all threads; before 2.14 also while it runs one."""


class ReferenceEngine:
    """Runs a version's exported program with PyTorch on the CPU, or its graph with ONNX Runtime.

    Inputs are checked against the first plan's optimization profiles, as an engine would check them, so that a call
    that works here works there. Outputs have an engine's names, structure and dtypes.

    Args:
        folder: The model's folder.
        manifest: Its manifest.

    Raises:
        SettingError: The version was logged without its program, or torch (or onnxruntime) is not installed.
        PlanError: The program's file is missing, cut short, or altered.
        ManifestError: The program does not fit the manifest.
    """

    backend: Backend = "reference"

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        if manifest.program is None or manifest.interface is None:
            raise SettingError(
                "This version holds no program to run on the CPU.",
                "a version that was logged with its program",
                'load it with backend="tensorrt", or log the model again with program="include"',
            )
        path = verify_program(folder, manifest.program)
        self.interface: Interface = manifest.interface
        self.profiles: tuple[Profile, ...] = manifest.plans[0].profiles or ()
        self._call_signature = CallSignature(self.interface, self.profiles)
        self._program: ReferenceProgram
        if manifest.program.torch is None:
            from .reference_onnx import OnnxProgram

            self._program = OnnxProgram(path, self.interface)
        else:
            self._program = _Program(path, self.interface, manifest.program.torch)
        self._closed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model as the original was called; numpy in, numpy out, torch in, torch out.

        Raises:
            InputError: The arguments do not fit the interface, any optimization profile, or what the program was
                exported for.
        """
        given = self._call_signature.bind(args, kwargs)
        kind = kind_of(given.values())
        call = self._call_signature.check(to_host(given, "host memory: the reference backend runs on the CPU"))
        outputs: Mapping[str, Any] = self._run(call.arrays)
        if kind == "torch":
            outputs = {name: to_torch(array) for name, array in outputs.items()}
        return self._call_signature.unflatten(outputs, given)

    def predict(self, inputs: Any) -> Result:
        """Answers a dict of arrays by input name with one by output name.

        Raises:
            InputError: The inputs do not fit the interface or any optimization profile.
        """
        call = self._call_signature.check(self._call_signature.named(inputs))
        return Result(self._run(call.arrays), self.backend, None, call.profile)

    def layers(self) -> list[dict[str, Any]]:
        """Returns no rows: there is no engine."""
        return []

    def runtime_cache(self) -> None:
        """Returns None: there are no compiled kernels."""
        return None

    def close(self) -> None:
        """Lets go of the program; later calls fail."""
        self._closed = True

    def __enter__(self) -> ReferenceEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        if self._closed:
            raise DeviceError("The model was closed.", "an open one", "load it again")
        return self._program.run(arrays)


class ReferenceProgram(Protocol):
    """What answers."""

    def run(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Answers arrays in the interface's order; by output name."""


class _Program:
    """The exported program, called by flat arrays in the interface's order."""

    def __init__(self, path: Path, interface: Interface, built_with: str) -> None:
        try:
            import torch
        except ImportError as error:
            raise SettingError(
                "torch is not installed, and the reference backend runs the program with it.",
                f"torch {built_with}, which exported the program, or newer",
                f"pip install 'torch>={built_with.split('+')[0]}'",
            ) from error
        self._torch = torch
        # Before 2.14 what a call sets for itself meets another thread's: "prior should be empty".
        shared = torch.__version__ < (2, 14)  # type: ignore[operator]  # it compares itself with tuples too
        self._turn: Any = _alone if shared else contextlib.nullcontext()
        self._interface = interface
        try:
            with _alone:
                exported = torch.export.load(path)
                self._module: Any = exported.module()
        except Exception as error:
            # A program with a string among its outputs, for one, is saved by torch 2.14 and can't be loaded by it.
            raise ManifestError(
                f"PyTorch {torch.__version__} can't load the program: {error}",
                f"a program of PyTorch {built_with} that PyTorch can read",
                f"install torch {built_with}"
                if torch.__version__ != built_with
                else 'use backend="tensorrt": the same PyTorch wrote this program and can\'t read it back',
            ) from error
        self._spec = exported.call_spec.in_spec
        self._leaves = list(leaves(interface.arguments))
        if self._spec is None or self._spec.num_leaves != len(self._leaves):
            raise ManifestError(
                f"The program takes {self._spec.num_leaves if self._spec else 'unknown'} values.",
                f"{len(self._leaves)}, as the manifest's arguments hold",
                "log the model again",
            )
        self._dtypes = _placeholder_dtypes(exported, len(self._leaves))
        self._place = {tensor.name: i for i, tensor in enumerate(interface.inputs)}

    def run(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        from .._torch import pytree

        values = [
            leaf.value if leaf.kind == "constant" else self._tensor(arrays[self._place[leaf.name]], dtype)
            for leaf, dtype in zip(self._leaves, self._dtypes)
        ]
        # The export's own spec knows classes that a manifest can't hold: a namedtuple's, a registered container's.
        args, kwargs = pytree.tree_unflatten(values, self._spec)
        with self._turn, self._torch.inference_mode():
            try:
                answer = self._module(*args, **kwargs)
            except (AssertionError, IndexError, RuntimeError) as error:
                raise _refused(error, [a.shape for a in arrays]) from error
        leaves: dict[str, Any] = {}
        _collect(self._interface.result, answer, leaves)
        try:
            return {t.name: self._array(leaves[t.name], t.dtype, len(t.shape)) for t in self._interface.outputs}
        except KeyError as error:
            raise ManifestError(
                f"The manifest's result has no place for the output {error}.",
                "every output once",
                "log the model again",
            ) from error

    def _tensor(self, array: np.ndarray, dtype: Any) -> Any:
        if not array.dtype.isnative or not array.flags.writeable or not array.flags.c_contiguous:
            # torch takes native byte order and positive strides only, and warns of memory it may not write.
            array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True)
        tensor = self._torch.from_numpy(array)
        return tensor if dtype is None or tensor.dtype == dtype else tensor.to(dtype)

    def _array(self, value: Any, dtype: str, rank: int) -> np.ndarray:
        if isinstance(value, self._torch.Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype == self._torch.bfloat16 else value).numpy()
        # A copy: an output may be one of the model's own weights, which the caller must not get to write.
        array = np.array(value, dtype=dtype)
        # A number that the program computes (a size) is a tensor of one element to an engine.
        return array.reshape((1,) * rank) if array.size == 1 and array.ndim != rank else array


def _refused(error: Exception, shapes: Sequence[tuple[int, ...]]) -> Exception:
    """What the program's own checks say, as an error of the inputs; anything else as it is."""
    text = " ".join(str(error).split())
    listed = ", ".join(str(list(shape)) for shape in shapes)
    guard = re.match(r"Guard failed:\s*(.*)", text)
    if guard or re.match(r"(Runtime assertion failed|Expected input)", text):
        return InputError(
            f"The exported program does not hold for inputs of the shapes {listed}: {guard[1] if guard else text}",
            "sizes that the program was exported for",
            "give other sizes, or convert the model again for sizes on this side",
        )
    if isinstance(error, IndexError):
        return InputError(f"PyTorch refuses the inputs: {text}", "indices within the model's tables", "correct them")
    return error


def _placeholder_dtypes(exported: Any, count: int) -> list[Any]:
    """The dtype that the program takes at each leaf; None: no tensor, or not known."""
    metas = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    names = list(exported.graph_signature.user_inputs)
    if len(names) != count:
        return [None] * count
    return [getattr(metas.get(name), "dtype", None) if isinstance(name, str) else None for name in names]


def _collect(structure: Structure, value: Any, leaves: dict[str, Any]) -> None:
    if isinstance(structure, TensorLeaf):
        leaves[structure.name] = value
    elif isinstance(structure, Branch):
        items: Sequence[Any]
        if structure.kind == "dict" and isinstance(value, Mapping):
            items = [value[key] for key in structure.keys or () if key in value]
        elif isinstance(value, (tuple, list)):
            items = value
        else:
            items = ()
        if len(items) != len(structure.items):
            raise ManifestError(
                f"The program answered a {type(value).__name__} where the manifest has a {structure.kind}.",
                f"a {structure.kind} of {len(structure.items)}",
                "log the model again",
            )
        for item, inner in zip(structure.items, items):
            _collect(item, inner, leaves)
    elif isinstance(structure, InputLeaf):
        return
