"""``models:/…`` is read as MLflow reads it."""

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.utils.models import _parse_model_uri

from mlflow_trt import model_uri
from mlflow_trt.model_uri import ModelUri


@pytest.mark.parametrize(
    "uri",
    [
        "models:/resnet/3",
        "models:/resnet/03",
        "models:/resnet@champion",
        "models:/a@b@champion",
        "models:/resnet/latest",
        "models:/resnet/LATEST",
        "models:/resnet/Production",
        "models:/m-0123456789abcdef",
        "models:/resnet@",
        "models:/resnet/",
        "models:/resnet/3/4",
        "models:/",
        "models:",
        "models:resnet/3",
        "models:///resnet/3",
        "models://profile@databricks/resnet/3",
        "models:/ /3",
        "models:/with space/3",
        "models:/a#b/3",
        "models:/main.schema.model/7",
        "runs:/abc/model",
        "s3://bucket/model",
        "/a/folder",
        "models",
        "",
    ],
)
def test_as_mlflow_does(uri):
    found = model_uri.parse(uri)
    try:
        wanted = _parse_model_uri(uri)
    except MlflowException:
        assert found is None
        return
    assert found is not None
    got = (found.model_id, found.name, found.version, found.stage, found.alias)
    assert got == (wanted.model_id, wanted.name, wanted.version, wanted.stage, wanted.alias)
    assert found.newest == (uri.lower().endswith("/latest"))


@pytest.mark.parametrize(
    "made",
    [
        ModelUri("resnet", version="3"),
        ModelUri("resnet", alias="champion"),
        ModelUri("resnet", newest=True),
        ModelUri("resnet", stage="Production"),
        ModelUri(model_id="m-12"),
        ModelUri("resnet", version="3", registry="profile@databricks"),
    ],
)
def test_what_is_written_is_read(made):
    assert model_uri.parse(str(made)) == made


def test_an_alias_of_no_model_is_malformed():
    assert model_uri.parse("models:/@champion") is None
