from __future__ import annotations

import json
import logging
import mmap
import sys
from types import SimpleNamespace

import pytest
import standin

from mlflow_trt.engine import trt
from mlflow_trt.errors import PlanError
from mlflow_trt.plan.dtypes import TENSORRT


def test_import_of_what_is_not_installed():
    with pytest.raises(PlanError, match="can't be imported") as caught:
        trt.import_runtime("no_such_tensorrt", "1.2.3.4")
    assert caught.value.remedy == "pip install no_such_tensorrt==1.2.3.4"


def test_an_alias_is_not_the_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__name__="tensorrt_rtx"))
    with pytest.raises(PlanError, match="tensorrt is tensorrt_rtx"):
        trt.import_runtime("tensorrt", "10.15.1.29")


@pytest.fixture(scope="module")
def tensorrt_rtx():
    return pytest.importorskip("tensorrt_rtx")


def test_the_real_module_is_imported(tensorrt_rtx):
    assert trt.import_runtime("tensorrt_rtx", None) is tensorrt_rtx


def test_every_name_that_is_used_is_in_the_real_module(tensorrt_rtx):
    for name in (
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
        "DynamicShapesKernelSpecializationStrategy.EAGER",
        "TensorIOMode.INPUT",
        "TensorIOMode.OUTPUT",
        "TensorLocation.HOST",
        "TensorFormat.LINEAR",
        "LayerInformationFormat.JSON",
        "ICudaEngine.create_runtime_config",
        "ICudaEngine.create_execution_context",
        "ICudaEngine.create_engine_inspector",
        "ICudaEngine.device_memory_size_v2",
        "ICudaEngine.get_aliased_input_tensor",
        "ICudaEngine.get_tensor_dtype",
        "ICudaEngine.get_tensor_format",
        "ICudaEngine.get_tensor_format_desc",
        "ICudaEngine.get_tensor_location",
        "ICudaEngine.get_tensor_mode",
        "ICudaEngine.get_tensor_name",
        "ICudaEngine.get_tensor_profile_shape",
        "ICudaEngine.get_tensor_shape",
        "ICudaEngine.num_io_tensors",
        "ICudaEngine.num_optimization_profiles",
        "IExecutionContext.active_optimization_profile",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.get_tensor_shape",
        "IExecutionContext.infer_shapes",
        "IExecutionContext.is_stream_capturable",
        "IExecutionContext.set_device_memory",
        "IExecutionContext.set_input_shape",
        "IExecutionContext.set_optimization_profile_async",
        "IExecutionContext.set_output_allocator",
        "IExecutionContext.set_tensor_address",
        "IRuntimeConfig.create_runtime_cache",
        "IRuntimeConfig.cuda_graph_strategy",
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
        "IRuntimeConfig.set_execution_context_allocation_strategy",
        "IRuntimeConfig.set_runtime_cache",
        "IRuntimeCache.deserialize",
        "IRuntimeCache.serialize",
        "IOutputAllocator",
        "Runtime.engine_host_code_allowed",
        "Runtime.get_engine_validity",
    ):
        found = tensorrt_rtx
        for part in name.split("."):
            found = getattr(found, part)


def test_every_real_dtype_has_a_name(tensorrt_rtx):
    assert set(tensorrt_rtx.DataType.__members__) <= set(TENSORRT)


def test_log_keeps_what_matters(tensorrt_rtx, caplog):
    log = trt.Log(tensorrt_rtx)
    severity = tensorrt_rtx.ILogger.Severity
    assert log.text() == "TensorRT gave no reason"
    with caplog.at_level(logging.DEBUG, logger="mlflow_trt.engine.trt"):
        log.logger.log(severity.VERBOSE, "detail")
        log.logger.log(severity.INFO, "news")
        log.logger.log(severity.WARNING, "odd")
    assert [r.levelname for r in caplog.records] == ["DEBUG", "INFO", "INFO"]
    assert log.text() == "odd"
    log.logger.log(severity.WARNING, "odd")
    log.logger.log(severity.ERROR, "broken")
    assert log.text() == "broken"
    assert log.text() == "TensorRT gave no reason"


def test_refused_bytes_give_tensorrts_own_words(tensorrt_rtx, tmp_path):
    # Safe without a driver: the runtime is made, the plan's header is refused, nothing reaches a GPU.
    (tmp_path / "plan").write_bytes(b"vtrt" + bytes(1000))
    with (
        (tmp_path / "plan").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan,
        pytest.raises(PlanError, match=r"Serialization|Cuda Runtime") as caught,
    ):
        trt.Deserialized("tensorrt_rtx", None, plan)
    assert tensorrt_rtx.__version__ in str(caught.value)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("Error Code 1: Cuda Runtime (out of memory)", True),
        ("Error Code 2: OutOfMemory (Requested size was 4096 bytes.)", True),
        ("(cudaError 2: out of memory)", True),
        ("Error Code 2: Internal Error (Assertion failed)", False),
        ("Error Code 4: API Usage Error", False),
    ],
)
def test_out_of_memory_is_recognized(text, means):
    assert trt.said_out_of_memory(text) is means


LINEAR, WIDE = "Row major linear FP32 format (kLINEAR)", "Two wide channel vectorized row major FP16 format (kCHW2)"


@pytest.mark.parametrize(("description", "linear"), [(LINEAR, True), (WIDE, False)])
def test_the_layout_is_known_by_its_description_where_there_is_no_name_for_it(description, linear):
    """A stand-in for an engine on a GPU; the descriptions are the lean library's own."""
    engine = SimpleNamespace(get_tensor_format_desc=lambda binding: description)  # get_tensor_format raises there
    assert trt._is_linear(SimpleNamespace(), engine, "x") is linear


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("Cannot deserialize engine with lean runtime since IRuntime::getEngineHostCodeAllowed() is false.", "exclude"),
        ("Error Code 1: Internal Error\nUnexpected call to stub loadRunner for ReformatRunner", "version_compatible"),
        ("Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.", "build the plan again"),
    ],
)
def test_what_tensorrts_refusal_means(monkeypatch, words, remedy):
    """A stand-in that says the words of the real library, whose plans can't be built here."""
    module = standin.Trt(None, lambda trt: None)
    monkeypatch.setattr(trt, "import_runtime", lambda name, release: module)
    monkeypatch.setattr(trt.Log, "text", lambda self: words)
    with pytest.raises(PlanError) as caught:
        trt.Deserialized("tensorrt_lean", "11.4.0.106", b"plan")
    assert words in caught.value.found
    assert remedy in caught.value.remedy


def test_layers_of_a_module_without_an_inspector():
    made = object.__new__(trt.Deserialized)
    made.trt = SimpleNamespace()
    assert made.layers() == []


def test_layers_by_name():
    assert trt.layer_rows('{"Layers": ["conv1", "fc"], "Bindings": ["x"]}') == [{"name": "conv1"}, {"name": "fc"}]


def test_layers_in_detail():
    detailed = {
        "Layers": [
            {
                "Name": "conv1",
                "LayerType": "CaskConvolution",
                "Inputs": [{"Name": "x", "Dimensions": [1, 3], "Format/Datatype": "Half NCHW"}],
                "Outputs": [{"Name": "y", "Dimensions": [1, 8], "Format": "Half"}],
                "TacticName": "sm80_xmma",
            },
            {"Name": "bare"},
        ]
    }
    first, second = trt.layer_rows(json.dumps(detailed))
    assert first == {
        "name": "conv1",
        "type": "CaskConvolution",
        "inputs": "x [1, 3] Half NCHW",
        "outputs": "y [1, 8] Half",
        "tactic": "sm80_xmma",
    }
    assert second["name"] == "bare"


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", "null"])
def test_layers_that_tell_nothing(text):
    assert trt.layer_rows(text) == []
