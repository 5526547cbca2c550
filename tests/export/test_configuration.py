"""What Triton is told of a model, read by the Protocol Buffers message that Triton itself reads it with."""

from __future__ import annotations

import numpy as np
import pytest
import trt_plans
from trt_plans import CLASSIFIER, GOLDEN, ONE_PROFILE, interface, record, tensor

from mlflow_trt.errors import CompatibilityError, SettingError
from mlflow_trt.export import pbtxt
from mlflow_trt.export.configuration import DATATYPES, Configuration, TritonOptions, configure
from mlflow_trt.export.selection import Selection, select
from mlflow_trt.plan.files import GoldenTensors
from mlflow_trt.plan.manifest import Manifest, ShapeRange

pb = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
text_format = pytest.importorskip("google.protobuf.text_format")


def selection(profiles=ONE_PROFILE, *records) -> Selection:
    return select(Manifest(interface=CLASSIFIER, plans=records or (record(profiles=profiles),)))


def configured(model=CLASSIFIER, profiles=ONE_PROFILE, golden=None, **options) -> Configuration:
    tensors = None if golden is None else GoldenTensors(golden, {})
    return configure("model", model, selection(profiles), tensors, TritonOptions(**options))


def parsed(configuration: Configuration):
    return text_format.Parse(pbtxt.dumps(configuration.message), pb.ModelConfig())


def ranges(*bounds, name="x"):
    """One profile for each (min, max)."""
    return tuple({name: ShapeRange(min=low, opt=high, max=high)} for low, high in bounds)


def test_rows_of_a_batch():
    expected = pb.ModelConfig(
        name="model",
        platform="tensorrt_plan",
        max_batch_size=8,
        input=[pb.ModelInput(name="input_0", data_type=pb.TYPE_FP32, dims=[4])],
        output=[pb.ModelOutput(name="output0", data_type=pb.TYPE_FP32, dims=[3])],
        version_policy=pb.ModelVersionPolicy(latest={"num_versions": 1}),
        instance_group=[pb.ModelInstanceGroup(count=1, kind="KIND_GPU")],
        dynamic_batching=pb.ModelDynamicBatching(),
    )

    assert parsed(configured()) == expected


def test_what_the_user_decides():
    config = parsed(
        configured(preferred_batch_sizes=(8, 4), delay=0.0025, instances=2, gpus=(0, 3), keep_versions=None)
    )

    assert config.dynamic_batching == pb.ModelDynamicBatching(
        preferred_batch_size=[4, 8], max_queue_delay_microseconds=2500
    )
    assert list(config.instance_group) == [pb.ModelInstanceGroup(count=2, kind="KIND_GPU", gpus=[0, 3])]
    assert config.version_policy == pb.ModelVersionPolicy(all={})
    assert parsed(configured(keep_versions=3)).version_policy.latest.num_versions == 3
    assert not parsed(configured(batching=False)).HasField("dynamic_batching")
    assert parsed(configured(batching=False)).max_batch_size == 8  # a client may still send rows of a batch


@pytest.mark.parametrize(
    ("inputs", "outputs", "dims"),
    [
        pytest.param([(8, 4)], [(8, 3)], [[8, 4], [8, 3]], id="a fixed batch"),
        pytest.param([("a", 4)], [("b", 3)], [[-1, 4], [-1, 3]], id="different symbols"),
        pytest.param([("batch", 4)], [("found", 2)], [[-1, 4], [-1, 2]], id="rows that depend on the data"),
        pytest.param([("batch", 4)], [("batch", "found")], [[-1, 4], [-1, -1]], id="columns that depend on the data"),
        pytest.param([("batch", "batch")], [("batch", 2)], [[-1, -1], [-1, 2]], id="a batch in two dimensions"),
        pytest.param([("batch", 4), (4,)], [("batch", 2)], [[-1, 4], [4], [-1, 2]], id="an input without batch"),
    ],
)
def test_requests_that_are_not_rows_of_a_batch(inputs, outputs, dims):
    model = interface(
        [tensor(f"x{i}", s) for i, s in enumerate(inputs)], [tensor(f"y{i}", s) for i, s in enumerate(outputs)]
    )
    profile = {
        t.name: ShapeRange(**{k: tuple(n if isinstance(d, str) else d for d in t.shape) for k, n in sizes})
        for t in model.inputs
        for sizes in [(("min", 1), ("opt", 2), ("max", 8))]
    }
    config = parsed(configured(model, (profile,)))

    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(t.dims) for t in (*config.input, *config.output)] == dims
    with pytest.raises(SettingError, match="can't be joined"):
        configured(model, (profile,), preferred_batch_sizes=(2,))


def test_a_tensor_without_dimensions_of_its_own_is_reshaped():
    model = interface([tensor("x", ("batch",))], [tensor("y", ("batch",))])
    config = parsed(configured(model, ranges(((1,), (8,)))))

    assert config.max_batch_size == 8
    for described in (*config.input, *config.output):
        assert list(described.dims) == [1]
        assert described.HasField("reshape")
        assert list(described.reshape.shape) == []
    assert not parsed(configured()).input[0].HasField("reshape")


@pytest.mark.parametrize("shapes", [((), ("batch", 3)), (("batch", 4), ())])
def test_a_scalar_is_refused(shapes):
    """Triton takes an empty shape beside a batch alone, as test_triton_parser shows."""
    model = interface([tensor("x", shapes[0])], [tensor("y", shapes[1])])
    with pytest.raises(CompatibilityError, match="has no dimension"):
        configured(model, ranges(((1, 4), (8, 4))))


def test_dynamic_dimensions_inside():
    model = interface(
        [tensor("x", ("batch", 3, "height", "2*width"))], [tensor("y", ("batch", "height", "Max(1, width)"))]
    )
    config = parsed(configured(model, ranges(((1, 3, 8, 8), (4, 3, 64, 64)))))

    assert config.max_batch_size == 4
    assert list(config.input[0].dims) == [3, -1, -1]
    assert list(config.output[0].dims) == [-1, -1]


def test_every_dtype_of_a_binding():
    model = interface([tensor(d, ("batch", 4), d) for d in DATATYPES], [tensor("y", ("batch", 3), "bfloat16")])
    profile = {d: ShapeRange(min=(1, 4), opt=(1, 4), max=(2, 4)) for d in DATATYPES}
    config = parsed(configured(model, (profile,)))

    names = [pb.DataType.Name(t.data_type) for t in config.input]
    assert names == [
        "TYPE_BOOL",
        "TYPE_INT8",
        "TYPE_UINT8",
        "TYPE_INT32",
        "TYPE_INT64",
        "TYPE_FP16",
        "TYPE_BF16",
        "TYPE_FP32",
    ]
    assert config.output[0].data_type == pb.TYPE_BF16


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int4", "float4_e2m1fn_x2", "float64"])
def test_a_dtype_that_the_backend_has_not_is_refused(dtype):
    for model in (
        interface([tensor("x", ("batch", 4), dtype)], [tensor("y", ("batch", 3))]),
        interface([tensor("x", ("batch", 4))], [tensor("y", ("batch", 3), dtype)]),
    ):
        with pytest.raises(CompatibilityError, match=dtype) as caught:
            configured(model)
        assert "convert the model with inputs and outputs of such a dtype" in caught.value.remedy


def test_a_truncated_input_has_the_binding_s_dtype():
    model = interface([tensor("x", ("batch", 4), "int32", public="int64")], [tensor("y", ("batch", 3))])

    assert parsed(configured(model)).input[0].data_type == pb.TYPE_INT32


@pytest.mark.parametrize(
    ("bounds", "largest", "joined"),
    [
        pytest.param([((1, 4), (1, 4)), ((2, 4), (64, 4))], 64, True, id="side by side"),
        pytest.param([((1, 4), (1, 4)), ((8, 4), (64, 4))], 64, False, id="a gap"),
        pytest.param([((8, 4), (16, 4)), ((1, 4), (9, 4))], 16, True, id="overlapping, the larger first"),
        pytest.param([((1, 4), (32, 8)), ((1, 4), (4, 64))], 32, False, id="fewer rows where they are longer"),
        pytest.param([((1, 4), (8, 8)), ((1, 8), (8, 64))], 8, True, id="the same rows at every length"),
        pytest.param([((1, 4), (8, 8)), ((1, 8), (8, 64)), ((9, 4), (9, 64))], 9, False, id="not all alike"),
    ],
)
def test_several_profiles(bounds, largest, joined):
    model = interface([tensor("x", ("batch", "length"))], [tensor("y", ("batch", 3))])
    made = configured(model, ranges(*bounds))
    config = parsed(made)

    assert config.max_batch_size == largest
    assert list(config.instance_group[0].profile) == [str(i) for i in range(len(bounds))]
    assert config.HasField("dynamic_batching") == joined
    assert any("will not join requests" in note for note in made.notes) != joined


def test_one_profile_needs_no_name():
    assert list(parsed(configured()).instance_group[0].profile) == []


def test_profiles_that_are_not_known_leave_the_shapes_whole():
    config = parsed(configured(CLASSIFIER, None))

    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [-1, 4]


def test_plans_for_several_gpus():
    chosen = selection(None, record("a", capabilities=("8.0",)), record("b", capabilities=("9.0", "10.0")))
    config = parsed(configure("model", CLASSIFIER, chosen, None, TritonOptions()))

    assert dict(config.cc_model_filenames) == {"8.0": "sm80.plan", "9.0": "sm90-sm100.plan", "10.0": "sm90-sm100.plan"}


def test_a_sample_of_warm_up_for_every_golden_point():
    made = configured(golden=GOLDEN)
    config = parsed(made)

    assert [(w.name, w.batch_size) for w in config.model_warmup] == [
        ("profile 0, min", 1),
        ("profile 0, opt", 2),
        ("profile 0, max", 8),
    ]
    # Triton repeats one row; the file holds it and no more.
    assert config.model_warmup[2].inputs["input_0"] == pb.ModelWarmup.Input(
        data_type=pb.TYPE_FP32, dims=[4], input_data_file="0.max.0"
    )
    assert made.warmup["0.max.0"] == np.array([100, 101, 102, 103], "<f4").tobytes()
    assert set(made.warmup) == {"0.min.0", "0.opt.0", "0.max.0"}


def test_warm_up_without_a_batch_gives_the_whole_tensor():
    model = interface([tensor("x", (2, 4)), tensor("scale", (1,))], [tensor("y", (2, 3))])
    golden = {"0.opt/x": trt_plans.rows(2), "0.opt/scale": np.array([2.5], np.float32)}
    made = configured(model, ({"x": ShapeRange(min=(2, 4), opt=(2, 4), max=(2, 4))},), golden)
    sample = parsed(made).model_warmup[0]

    assert sample.batch_size == 1
    assert [list(sample.inputs["x"].dims), list(sample.inputs["scale"].dims)] == [[2, 4], [1]]
    assert made.warmup == {"0.opt.0": np.arange(8, dtype="<f4").tobytes(), "0.opt.1": np.array(2.5, "<f4").tobytes()}


def test_warm_up_holds_the_binding_s_bits():
    model = interface(
        [
            tensor("half", ("batch", 2), "bfloat16", public="float32"),
            tensor("ids", ("batch", 2), "int32", public="int64"),
            tensor("mask", ("batch",), "bool"),
        ],
        [tensor("y", ("batch", 3))],
    )
    profile = {t.name: ShapeRange(min=(1, 2), opt=(2, 2), max=(4, 2)) for t in model.inputs[:2]}
    golden = {
        "0.opt/half": np.array([[1.0, -2.5], [0, 0]], np.float32),
        "0.opt/ids": np.array([[7, -1], [0, 0]], np.int64),
        "0.opt/mask": np.array([True, False]),
    }
    made = configured(model, (profile,), golden)

    assert made.warmup["0.opt.0"] == bytes.fromhex("803f 20c0")
    assert made.warmup["0.opt.1"] == np.array([7, -1], "<i4").tobytes()
    assert made.warmup["0.opt.2"] == b"\x01"
    assert list(parsed(made).model_warmup[0].inputs["mask"].dims) == [1]


def test_points_of_another_plan_s_profile_are_left_out():
    made = configured(golden={**GOLDEN, "1.max/x": trt_plans.rows(64)})

    assert [w.name for w in parsed(made).model_warmup] == ["profile 0, min", "profile 0, opt", "profile 0, max"]
    assert "1.max.0" not in made.warmup


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"delay": -1.0}, "delay is -1.0"),
        ({"delay": float("nan")}, "delay is nan"),
        ({"instances": 0}, "instances is 0"),
        ({"gpus": (-1,)}, "gpus is"),
        ({"keep_versions": 0}, "keep_versions is 0"),
        ({"preferred_batch_sizes": (4, 9)}, "hold 9"),
        ({"preferred_batch_sizes": (0,)}, "hold 0"),
    ],
)
def test_options_that_can_not_be_are_refused(options, found):
    with pytest.raises(SettingError, match=found):
        configured(**options)
