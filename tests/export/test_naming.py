"""What a model's URI says of its name and version."""

from __future__ import annotations

import pytest

from mlflow_trt.errors import SettingError
from mlflow_trt.export.naming import Named, parse


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("models:/resnet/3", Named("resnet", 3)),
        ("models:/resnet@champion", Named("resnet", None, "champion")),
        ("models:/m-0123456789abcdef", Named(None)),
        ("models://profile@databricks/resnet/3", Named(None)),  # a registry elsewhere
        ("runs:/0123/model", Named(None)),
        ("s3://bucket/model", Named(None)),
    ],
)
def test_names_of_uris(uri, named):
    assert parse(uri) == named


def test_a_folder_has_its_own_name_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "resnet").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "resnet")
    monkeypatch.chdir(tmp_path / "resnet")
    for given in (tmp_path / "resnet", f"{tmp_path}/resnet/", f"file://{tmp_path}/resnet", ".", tmp_path / "link"):
        assert parse(given) == Named("resnet")


@pytest.mark.parametrize("word", ["latest", "Production", "Staging", "None", "Archived"])
def test_a_word_for_a_version_that_changes_is_refused(word):
    with pytest.raises(SettingError, match="names no version that stays the same") as caught:
        parse(f"models:/resnet/{word}")
    assert "an alias" in caught.value.remedy
