"""Full TensorRT's builder and parser: every name and call that is used, against NVIDIA's real bindings of them.

Nothing is built: what they call can't be had here.
"""

from __future__ import annotations

import pytest
import trt_api

from . import full

RELEASES = pytest.mark.parametrize("release", full.RELEASES)
USED = trt_api.used(trt_api.BUILDER, trt_api.NETWORK)

ONLY_RTX = {
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}
"""Used only where compute capabilities are named, which TensorRT-RTX alone takes."""


def test_the_source_is_read():
    """The tests below are worth what this finds."""
    assert trt_api.Use("OnnxParser.parse_from_file", 1) in USED
    assert trt_api.Use("Builder.build_serialized_network", 2) in USED
    assert trt_api.Use("IBuilderConfig.set_memory_pool_limit", 2) in USED
    assert trt_api.Use("ParserError.node_operator", 0) in USED
    assert trt_api.Use("BuilderFlag.STRIP_PLAN", None) in USED
    assert len(USED) > 50
    assert {use.name for use in USED} >= ONLY_RTX


def test_tensorrt_rtx_has_all_that_is_used():
    assert trt_api.missing(pytest.importorskip("tensorrt_rtx"), USED) == []


@RELEASES
def test_full_tensorrt_has_all_that_is_used(release, tmp_path):
    code = (
        "import tensorrt_bindings as trt, trt_api\n"
        "print(trt.__version__)\n"
        "print(*trt_api.missing(trt, trt_api.used(trt_api.BUILDER, trt_api.NETWORK)), sep='\\n')\n"
    )
    version, *missing = full.output(release, code, tmp_path).splitlines()
    assert version == release
    assert set(missing) == ONLY_RTX


@RELEASES
def test_its_settings_are_set_by_their_names(release, tmp_path):
    """Attributes whose names the source holds as text, and those of weights by the kind of their layer."""
    code = """
import tensorrt_bindings as trt
from mlflow_trt.conversion.onnx_parser import _ATTRIBUTES
print([name for name in _ATTRIBUTES.values() if not isinstance(getattr(trt.IBuilderConfig, name, None), property)])
kinds = {"Constant": "weights", "Convolution": "kernel bias", "Scale": "shift scale power"}
kinds["Deconvolution"] = kinds["Convolution"]
there = {kind: dir(getattr(trt, f"I{kind}Layer")) for kind in kinds}
print([(kind, name) for kind, names in kinds.items() for name in names.split() if name not in there[kind]])
"""
    assert full.output(release, code, tmp_path).splitlines() == ["[]", "[]"]


@RELEASES
def test_networks_are_strongly_typed(release, tmp_path):
    """Where there is a flag for it, it is the one that is set: without, TensorRT would choose precisions itself."""
    code = "import tensorrt_bindings as trt; print(int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))"
    assert full.output(release, code, tmp_path).isdecimal()


@RELEASES
def test_what_listens_to_a_build_derives_from_the_real_class(release, tmp_path):
    code = """
import inspect
from types import SimpleNamespace
import tensorrt_bindings as trt
from mlflow_trt.conversion.builder import _monitor
watch = SimpleNamespace(listener=None, interrupted=False)
monitor = _monitor(trt, watch)
monitor.phase_start("a", None, 1)
assert monitor.step_complete("a", 0)
watch.interrupted = True
assert not monitor.step_complete("a", 0)
monitor.phase_finish("a")
for name in ("phase_start", "step_complete", "phase_finish"):
    theirs = getattr(trt.IProgressMonitor, name).__doc__.split("(self")[1].split(") ->")[0].split(", ")[1:]
    ours = list(inspect.signature(getattr(monitor, name)).parameters)
    assert ours == [text.split(":")[0] for text in theirs], (ours, theirs)
print("derived")
"""
    assert full.output(release, code, tmp_path) == "derived"
