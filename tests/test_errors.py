"""Errors: three parts in every message, MLflow's status codes, and their way across process borders."""

import pickle

import pytest
from mlflow.exceptions import MlflowException

from mlflow_trt import errors
from mlflow_trt.errors import TrtError, UnsupportedOperatorError

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, TrtError)]


def test_a_message_has_what_was_found_what_was_expected_and_what_to_do():
    error = TrtError("Found this.", "that", "do this")

    assert str(error) == "Found this.\nExpected: that\nTo do: do this"
    assert (error.found, error.expected, error.remedy) == ("Found this.", "that", "do this")


def test_parts_that_are_not_given_leave_no_empty_line():
    assert str(TrtError("Found this.")) == "Found this."
    assert str(TrtError("Found this.", remedy="do this")) == "Found this.\nTo do: do this"


@pytest.mark.parametrize("kind", CLASSES)
def test_one_except_clause_catches_them_all(kind):
    assert issubclass(kind, MlflowException)
    with pytest.raises(TrtError):
        raise kind("Found this.")


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_crosses_process_borders_whole(kind):
    error = kind("Found this.", "that", "do this")

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is kind
    assert str(copy) == str(error)
    assert (copy.found, copy.expected, copy.remedy) == ("Found this.", "that", "do this")
    assert copy.error_code == error.error_code


def test_the_list_of_operators_crosses_too():
    error = UnsupportedOperatorError("Found this.", operators=("aten.nonzero", "aten.special"))

    assert pickle.loads(pickle.dumps(error)).operators == ("aten.nonzero", "aten.special")


@pytest.mark.parametrize(
    ("kind", "code", "status"),
    [
        (errors.InputError, "BAD_REQUEST", 400),
        (errors.SettingError, "INVALID_PARAMETER_VALUE", 400),
        (errors.ConversionError, "INVALID_PARAMETER_VALUE", 400),
        (errors.PrecisionError, "INVALID_PARAMETER_VALUE", 400),
        (errors.ParityError, "INVALID_STATE", 500),
        (errors.PlanError, "INVALID_STATE", 500),
        (errors.ManifestError, "INVALID_STATE", 500),
        (errors.CompatibilityError, "INVALID_STATE", 500),
        (errors.DeviceError, "INTERNAL_ERROR", 500),
        (errors.StoreError, "INTERNAL_ERROR", 500),
    ],
)
def test_a_scoring_server_answers_with_the_right_status(kind, code, status):
    error = kind("Found this.")

    assert error.error_code == code
    assert error.get_http_status_code() == status
