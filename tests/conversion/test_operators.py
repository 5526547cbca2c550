# ruff: noqa: E402
"""What is known of operators: their names, and which dtypes they need."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from mlflow_trt import Input

from .models import Function
from .programs import prepared, run


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_what_needs_its_own_dtypes_keeps_them(dtype):
    """Half of a complex number, bits read as another dtype, and what PyTorch has no half kernel for."""

    def function(x):
        return torch.fft.rfft(x).abs(), (x.view(torch.int32) >> 16), torch.linalg.inv(x @ x.T + torch.eye(4))

    x = torch.randn(4, 16)
    _, program = prepared(Function(function), [Input((4, 16))], dtype)
    for actual, expected in zip(run(program.program, x), function(x)):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-3)
