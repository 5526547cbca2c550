"""An error of this package on its way from one process to another."""

from __future__ import annotations

import pytest

from mlflow_trt.errors import BusyError, TrtError
from mlflow_trt.serving.error_parts import ErrorParts
from mlflow_trt.serving.protocol.datatypes import ProtocolError


@pytest.mark.parametrize("kind", [BusyError, ProtocolError, TrtError])
def test_an_error_is_put_together_again(kind):
    error = ErrorParts.of(kind("It is so.", "else", "do this")).error()
    assert type(error) is kind
    assert (error.found, error.expected, error.remedy) == ("It is so.", "else", "do this")


@pytest.mark.parametrize("name", ["NobodyKnowsIt", "MlflowException", "annotations"])
def test_an_error_of_another_kind_is_a_plain_one(name):
    assert type(ErrorParts(name, "It is so.", "", "").error()) is TrtError
