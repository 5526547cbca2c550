"""How an engine is judged and described: its tolerance, its precision, and errors of the steps before."""

from __future__ import annotations

import pytest

from mlflow_trt.conversion import plan_record
from mlflow_trt.conversion.network import Network
from mlflow_trt.errors import ConversionError, PrecisionError, SettingError
from mlflow_trt.plan.manifest import Tolerance
from mlflow_trt.plan.parity import default_tolerance


def test_tolerance():
    assert plan_record.tolerance_of(None, "fp16") == default_tolerance("fp16")
    assert plan_record.tolerance_of(0.5, "fp16").rel_l2 == 0.5
    assert plan_record.tolerance_of({"top1": 0.9}, None).top1 == 0.9


def checked(precision, dtypes, *, kept=(), tf32=None, settings=None):
    """The check of a network whose layers of arithmetic have these dtypes."""
    arithmetic = [(f"layer{place}", "CONVOLUTION", dtype) for place, dtype in enumerate(dtypes)]
    network = Network(tf32=precision != "fp32" if tf32 is None else tf32, arithmetic=arithmetic)
    plan_record.check_precision(precision, network, kept, settings or {})


HALF, SINGLE = "float16", "float32"


@pytest.mark.parametrize(
    ("precision", "dtypes", "options"),
    [
        ("fp16", [HALF, HALF], {}),
        ("bf16", ["bfloat16"], {}),
        ("fp32", [SINGLE], {}),
        ("tf32", [SINGLE], {}),
        ("fp16", [], {}),  # nothing carries arithmetic
        ("fp16", [HALF, SINGLE], {"kept": ("matmul",)}),  # the model's own cast
        ("fp16", [HALF, SINGLE, SINGLE], {"kept": ("attention",)}),  # one operation may be two layers
        ("fp16", [SINGLE, SINGLE], {"settings": {"use_fp32_acc": True}}),
    ],
)
def test_a_precision_that_the_network_has(precision, dtypes, options):
    checked(precision, dtypes, **options)


@pytest.mark.parametrize(
    ("precision", "dtypes", "options", "words"),
    [
        ("fp16", [HALF, SINGLE], {}, r"1 of 2 layers .* are not float16:\n  convolution layer1: float32"),
        ("fp16", [SINGLE], {"kept": ("matmul",)}, "1 of 1 layers"),  # all that it has
        ("fp16", [HALF] + [SINGLE] * 3, {"kept": ("matmul",)}, "3 of 4 layers"),
        ("bf16", [HALF], {}, "are not bfloat16"),
        ("fp32", [HALF], {}, "are not float32"),
        ("fp32", [SINGLE], {"tf32": True}, "TF32 on"),
        ("tf32", [SINGLE], {"tf32": False}, "TF32 off"),
    ],
)
def test_a_precision_that_it_has_not(precision, dtypes, options, words):
    with pytest.raises(PrecisionError, match=words):
        checked(precision, dtypes, **options)


@pytest.mark.parametrize("given", [0, -1, float("nan"), {"rel": 0.1}, {"rel_l2": "much"}, {"cosine": 2}])
def test_a_tolerance_that_is_none(given):
    with pytest.raises(SettingError, match=r"The tolerance .* is not valid"):
        plan_record.tolerance_of(given, "fp16")


def test_a_tolerance_is_taken_as_it_is_and_what_is_not_said_is_the_precision_s():
    own = Tolerance(rel_l2=0.3, cosine=0.5, top1=0.9)
    assert plan_record.tolerance_of(own, "fp16") is own
    default = plan_record.tolerance_of(None, "bf16")
    assert plan_record.tolerance_of({"cosine": 0.5}, "bf16") == default.model_copy(update={"cosine": 0.5})


@pytest.mark.parametrize("error", [OSError("disk"), MemoryError(), SettingError("found", "expected", "to do")])
def test_what_is_no_fault_of_a_step_stays_as_it_is(error):
    @plan_record.typed
    def step():
        raise error

    with pytest.raises(type(error)) as caught:
        step()
    assert caught.value is error


def test_any_other_error_says_where_to_look():
    @plan_record.typed
    def step():
        raise KeyError

    with pytest.raises(ConversionError, match="KeyError: no reason given") as caught:
        step()
    assert isinstance(caught.value.__cause__, KeyError)
