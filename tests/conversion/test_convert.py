# ruff: noqa: E402
"""From a model to a plan with the real builder, without a GPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")

from packaging.version import Version
from torch import nn

import mlflow_trt
from mlflow_trt import Input, UnsupportedOperatorError
from mlflow_trt.conversion.cpu_only import supported_capabilities
from mlflow_trt.errors import ConversionError, SettingError
from mlflow_trt.plan.files import read_header
from mlflow_trt.plan.manifest import Branch, ShapeRange, TensorLeaf, parse

from .models import Attention, Cnn, Function, Nested, Pair

TARGET = "8.6"
both = pytest.mark.usefixtures("converter")
GIVEN = {"compute_capabilities": TARGET, "timeout": 300, "converter": "torch_tensorrt"}
"""What these tests convert with, unless they say otherwise."""
shared = pytest.mark.xdist_group("convert")  # one worker builds the plans that these tests share
WEIGHTS = 3 * 8 * 9 + 8 + 8 * 36 * 20 + 20
"""Of Cnn's convolution and linear layer."""


def convert(model, inputs, kwargs=None, **options):
    return mlflow_trt.convert(model, inputs, kwarg_inputs=kwargs, **{**GIVEN, **options})


@pytest.fixture(params=["torch_tensorrt", "onnx"])
def converter(request, monkeypatch):
    """Once by each."""
    if request.param == "onnx":
        pytest.importorskip("onnxscript", reason="needs onnxscript")
    monkeypatch.setitem(GIVEN, "converter", request.param)


def bindings_of(plan):
    return [t.binding_dtype for t in (*plan.manifest.interface.inputs, *plan.manifest.interface.outputs)]


@pytest.fixture(scope="module")
def cnn():
    return Cnn().train()


@pytest.fixture(scope="module")
def cnn_fp32(cnn):
    return convert(cnn, [Input(((1, 4, 8), 3, 8, 8))], precision="fp32")


@pytest.fixture(scope="module")
def cnn_fp16(cnn):
    return convert(cnn, [Input(((1, 4, 8), 3, 8, 8))], precision="fp16", optimization_level=2)


@shared
def test_record(cnn_fp32, cnn_fp16):
    record = cnn_fp32.record
    header = read_header(cnn_fp32.serialized)
    assert (record.runtime, record.release, record.capabilities) == ("tensorrt_rtx", header.release, (TARGET,))
    assert header.capabilities == (TARGET,)
    assert record.file.size == len(cnn_fp32.serialized) == header.length
    assert record.file.path == f"plans/tensorrt_rtx-{header.release}-sm86/model.plan"
    assert record.profiles == ({"x": ShapeRange(min=(1, 3, 8, 8), opt=(4, 3, 8, 8), max=(8, 3, 8, 8))},)
    assert record.settings["disable_tf32"] is True
    assert record.settings["attn_bias_is_causal"] is False
    assert cnn_fp16.record.settings["optimization_level"] == 2
    assert (record.parity.status, record.latency.status) == ("not_measured", "not_measured")
    assert record.built_on.torch == torch.__version__.split("+")[0]
    assert record.build_seconds > 0
    assert not record.refittable
    assert parse(cnn_fp32.manifest.to_json()) == cnn_fp32.manifest


@shared
def test_interface(cnn_fp16):
    interface = cnn_fp16.manifest.interface
    (x,) = interface.inputs
    (y,) = interface.outputs
    assert (x.name, x.binding, x.shape) == ("x", "x", ("batch", 3, 8, 8))
    assert (y.name, y.binding, y.shape) == ("output0", "output0", ("batch", 20))
    assert {x.dtype, x.binding_dtype, y.dtype, y.binding_dtype} == {"float32"}
    assert interface.result == TensorLeaf(name="output0")


@shared
def test_caller_keeps_a_module_in_training_mode(cnn, cnn_fp16):
    assert all(module.training for module in cnn.modules())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in cnn.parameters())


@shared
def test_parent_is_left_alone(cnn_fp32):
    import sys

    assert "torch_tensorrt" not in sys.modules
    assert torch.cuda.get_device_capability.__module__ == "torch.cuda"
    assert torch.cuda.current_device.__module__ == "torch.cuda"
    assert torch.cuda.mem_get_info.__module__ == "torch.cuda.memory"


@shared
def test_fp16_is_the_precision_of_the_network(cnn_fp32, cnn_fp16):
    single, half = cnn_fp32.record.precision, cnn_fp16.record.precision
    assert (single.requested, half.requested) == ("fp32", "fp16")
    assert single.census.weight_bytes["float32"] >= 4 * WEIGHTS
    assert "float16" not in single.census.weight_bytes
    assert 2 * WEIGHTS <= half.census.weight_bytes["float16"] < 2 * WEIGHTS + 100
    assert half.census.weight_bytes.get("float32", 0) == 0
    assert (single.census.tf32, half.census.layers["float32"]) == (False, 1)  # the cast of the output


def test_program_and_plan_size_at_half_precision():
    """An exported program gets real half precision too, and its plan shrinks by half of the weights."""
    torch.manual_seed(0)
    model = nn.Linear(512, 512).eval()
    program = torch.export.export(model, (torch.zeros(2, 512),))
    single = convert(program, None)
    half = mlflow_trt.convert(
        program, arg_inputs=[Input((2, 512))], enabled_precisions={torch.float16}, compute_capabilities=TARGET
    )
    assert half.record.precision.requested == "fp16"
    assert half.record.precision.census.weight_bytes["float16"] == 2 * (512 * 512 + 512)
    assert len(half.serialized) < 0.7 * len(single.serialized)
    assert single.record.precision.requested is None
    assert program.state_dict["weight"].dtype == torch.float32
    assert half.program is program


@shared
@both
def test_bf16_and_tf32(cnn):
    plan = convert(cnn, [Input((2, 3, 8, 8))], precision="bf16", compute_capabilities=["8.0", "sm86", (8, 9), 12.0])
    assert plan.record.precision.census.weight_bytes["bfloat16"] == pytest.approx(2 * WEIGHTS, abs=100)
    assert plan.record.capabilities == read_header(plan.serialized).capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert bindings_of(plan) == ["float32"] * 2


@both
def test_bf16_model_has_float32_bindings_and_every_target_that_can():
    plan = convert(nn.Linear(4, 4).bfloat16(), [Input((2, 4))], compute_capabilities=None)
    supported = [c for c in supported_capabilities() if c != "7.5"]
    assert plan.record.capabilities == tuple(supported)
    assert plan.record.precision.census.weight_bytes == {"bfloat16": 40}
    assert bindings_of(plan) == ["float32"] * 2
    with pytest.raises(SettingError, match=r"bfloat16.*7\.5"):
        convert(nn.Linear(4, 4).bfloat16(), [Input((2, 4))], compute_capabilities="7.5")


@both
def test_nested():
    """Everything at once: several inputs, by keyword, nested; outputs repeated, handed through, constant, None."""
    plan = convert(
        Nested(),
        [Input(((1, 4, 8), 4)), {"m": Input(((1, 2, 4), 3)), "n": Input(((1, 2, 4), 3))}],
        {"flag": True, "ids": Input(((1, 4, 8),), "int64"), "mask": Input(((1, 4, 8), 6), "bool")},
    )
    interface = plan.manifest.interface
    assert {t.name: (t.dtype, t.shape) for t in interface.inputs} == {
        "x": ("float32", ("batch", 4)),
        "pair_m": ("float32", ("s0", 3)),
        "pair_n": ("float32", ("s0", 3)),
        "ids": ("int64", ("batch",)),
        "mask": ("bool", ("batch", 6)),
    }
    assert {t.name: (t.dtype, t.shape) for t in interface.outputs} == {
        "y": ("float32", ("batch", 5)),
        "again.4": ("int64", ()),
        "again.5.left": ("float32", ("s0", 3)),
        "more.0": ("float32", ("batch", 8)),
        "more.1": ("bool", ("batch", 6)),
        "more.2": ("int64", ("batch",)),
        "more.4": ("float32", (3,)),
        "more.5": ("float32", ()),
        "more.6": ("bool", ("batch", 5)),
    }
    assert all(t.binding_dtype == t.dtype for t in interface.outputs)
    assert isinstance(interface.result, Branch)
    pair = interface.result.items[1].items[5]
    assert (pair.kind, pair.type_name, pair.keys) == ("namedtuple", "Pair", Pair._fields)
    assert {key.split("/")[1] for key in plan.golden.outputs} == {t.name for t in interface.outputs}


@both
def test_attention_and_profiles():
    shapes = [((1, 1, 2), (2, 4, 8)), ((4, 8, 16), (8, 16, 16))]
    plan = convert(Attention(), [Input(profiles=shapes, dtype="int64")] * 2, precision="fp16")
    assert [p["ids"].max for p in plan.record.profiles] == [(2, 8), (16, 16)]
    assert [t.shape for t in plan.manifest.interface.inputs] == [("batch", "s0"), ("batch", "s0")]
    assert plan.record.precision.census.weight_bytes["float16"] > 3000
    one = convert(Attention(), [Input(((1, 8, 16), (2, 16, 16)), "int64")] * 2, precision="fp16")
    assert len(plan.serialized) > 1.5 * len(one.serialized)  # two profiles, two sets of kernels


class Split(nn.Module):
    """An attention as GPT-2 has it: one product for queries, keys and values."""

    def __init__(self, summed):
        super().__init__()
        self.w, self.b, self.summed = nn.Parameter(torch.randn(16, 48) / 4), nn.Parameter(torch.randn(48)), summed

    def forward(self, x):
        parts = self.summed(x, self.w, self.b).split(16, dim=2)
        q, k, v = [part.view(4, 24, 2, 8).transpose(1, 2) for part in parts]
        return nn.functional.scaled_dot_product_attention(q, k, v)


def test_attention_of_a_fixed_size():
    import tensorrt_rtx

    if Version(tensorrt_rtx.__version__).release < (1, 6):
        pytest.skip("TensorRT-RTX 1.4 crashes on it")
    plan = convert(Split(lambda x, w, b: torch.addmm(b, x.view(-1, 16), w).view(4, 24, 48)), [Input((4, 24, 16))])
    assert plan.record.precision.census.weight_bytes["float32"] >= 4 * (16 * 48 + 48)


def test_what_tensorrt_says_is_told():
    """A fault of Myelin's in 1.6: a sum apart from its product, then slices."""
    told = None
    try:
        convert(Split(lambda x, w, b: (x.view(-1, 16) @ w).view(4, 24, 48) + b), [Input((4, 24, 16))])
    except ConversionError as error:
        told = str(error)
    if told is None:
        pytest.skip("this release of TensorRT builds it")
    assert "TensorRT could not build the engine" in told
    assert "\n  TensorRT: IBuilder::buildSerializedNetwork: Error Code" in told
    assert "To do: see the messages above" in told


@both
def test_output_names_and_bindings_that_would_clash():
    plan = convert(Function(lambda x: {"x": x * 2, "y": x.sum(0)}), [Input(((1, 2, 4), 3))])
    assert [(t.name, t.binding) for t in plan.manifest.interface.outputs] == [("x", "x.out"), ("y", "y")]
    named = convert(Function(lambda x: (x * 2, x.repeat(2, 1))), [Input(((1, 2, 4), 3))], output_names=["a", "b"])
    assert [(t.name, t.shape) for t in named.manifest.interface.outputs] == [("a", ("batch", 3)), ("b", ("2*batch", 3))]


@both
def test_operand_handed_through_by_a_converter():
    """A view that changes nothing is the input itself to TensorRT, and would rename its binding."""
    plan = convert(Function(lambda x: (x.view(2, 3), x.reshape(2, 3), x + 1)), [Input((2, 3))])
    assert [t.name for t in plan.manifest.interface.outputs][-1] == "output2"
    assert [t.binding for t in plan.manifest.interface.inputs] == ["x"]


def test_unsupported_operators():
    with pytest.raises(UnsupportedOperatorError, match="require_full_compilation") as caught:
        convert(Function(lambda x: torch.linalg.svd(x)[1] + torch.special.i0(x).sum()), [Input((4, 4))])
    assert caught.value.operators == ("torch.ops.aten._linalg_svd.default", "torch.ops.aten.i0.default")


def test_an_operator_whose_converter_is_not_declared_for_dynamic_sizes_says_so():
    model = Function(lambda x: torch.gather(x, 1, (x > 0).long()))

    with pytest.raises(UnsupportedOperatorError, match=r"gather.*assume_dynamic_shape_support=True"):
        convert(model, [Input(((1, 2, 4), 3))])


@both
def test_int16_inside_is_held_in_int32():
    plan = convert(Function(lambda x: (x.float() * 2).to(torch.int16) + 1), [Input((2, 2))])
    assert plan.manifest.interface.outputs[0].dtype in ("int16", "int32")


def test_model_of_another_kind():
    with pytest.raises(SettingError, match=r"torch\.nn\.Module"):
        convert(object(), [Input((2, 3))])


@both
def test_fp8_weights_of_modelopt():
    quantization = pytest.importorskip("modelopt.torch.quantization", reason="needs nvidia-modelopt")
    torch.manual_seed(0)
    model = Cnn().eval()
    x = torch.randn(4, 3, 8, 8)
    quantized = quantization.quantize(model, quantization.FP8_DEFAULT_CFG, forward_loop=lambda m: m(x))
    plan = convert(quantized, [Input(((1, 4, 8), 3, 8, 8))], precision="fp16", compute_capabilities=None)
    assert plan.record.precision.census.layers["float8"] >= 4  # inputs and weights of both layers
    assert plan.record.capabilities == ("8.9", "12.0", "12.1")
    with torch.no_grad():
        expected = model(torch.from_numpy(plan.golden.inputs["0.opt/x"]))
    assert plan.golden.outputs["0.opt/output0"] == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-3)


class Image(nn.Module):
    """An image as a decoder gives it, normalised inside the model, and one as an encoder takes it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)
        self.register_buffer("mean", torch.tensor([123.7, 116.3, 103.5]).view(1, 3, 1, 1))

    def forward(self, image):
        x = (image.permute(0, 3, 1, 2).float() - self.mean) / 58.4
        return torch.topk((self.norm(self.conv(x)).sigmoid() * 255).to(torch.uint8).permute(0, 2, 3, 1) + 1, 2)


@both
def test_bytes_in_and_out(tmp_path):
    model, options = Image().eval(), {"precision": "fp16", "compute_capabilities": None}
    plan = convert(model, [Input(((1, 2, 4), 8, 8, 3), "uint8")], **options)
    assert bindings_of(plan) == ["uint8", "uint8", "int64"]
    assert plan.record.precision.census.weight_bytes["float16"] >= 2 * 3 * 4 * 9
    mlflow_trt.save_model(plan, tmp_path / "model")
    engine = mlflow_trt.load_model(tmp_path / "model", backend="reference")
    x = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    answer = engine(x.numpy())
    assert answer._fields == ("values", "indices")
    assert (answer.values == model(x).values.numpy()).mean() > 0.9


@pytest.mark.parametrize("precision", [None, "fp16"])
def test_operators_of_a_package_are_named_with_their_place(precision):
    torchvision = pytest.importorskip("torchvision")

    class Kept(nn.Module):
        def forward(self, boxes, scores):
            return torchvision.ops.nms(boxes, scores, 0.5)

    with pytest.raises(UnsupportedOperatorError, match=r"torchvision\.nms\.default .*\(Kept\)") as caught:
        convert(Kept(), [Input((16, 4)), Input((16,))], precision=precision)
    assert caught.value.operators == ("torch.ops.torchvision.nms.default",)
