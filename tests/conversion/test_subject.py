# ruff: noqa: E402
"""What is given as a model: wrapped, in TorchScript, or without weights."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch import nn

from mlflow_trt import Input, convert
from mlflow_trt.conversion.subject import subject
from mlflow_trt.errors import SettingError


@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel, lambda m: nn.DataParallel(torch.compile(m)), lambda m: m]
)
def test_wrapped(wrap):
    model = nn.Linear(4, 2)
    assert subject(wrap(model)) is model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "found", "remedy"),
    [
        (lambda: torch.jit.trace(nn.Linear(4, 2), torch.zeros(1, 4)), "TorchScript", "load_state_dict"),
        (lambda: torch.jit.script(nn.Linear(4, 2)), "TorchScript", "load_state_dict"),
        (lambda: nn.Sequential(nn.Linear(4, 2), torch.jit.script(nn.ReLU())), "part 1 is TorchScript", "in its place"),
        (lambda: nn.LazyLinear(2), "lazy", "call the model once"),
        (lambda: nn.Linear(4, 2, device="meta"), "weight is on the meta device", "load the weights"),
        (lambda: torch.relu, "builtin_function", "pass the model itself"),
    ],
)
def test_refused(make, found, remedy):
    with pytest.raises(SettingError) as caught:
        convert(make(), [Input((1, 4))])
    assert found in caught.value.found
    assert remedy in caught.value.remedy
