"""What of an exported program's file may run code when it is loaded."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from pathlib import Path

import pytest
import stored_models

from mlflow_trt.flavor.sources import pickled

torch = pytest.importorskip("torch")

TENSOR = {"path_name": "tensor_0", "use_pickle": False}


def config(*entries):
    return json.dumps({"config": {str(n): entry for n, entry in enumerate(entries)}}).encode()


@pytest.fixture
def program(tmp_path) -> Path:
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = stored_models.network()
            self.register_buffer("scale", torch.full((3,), 2.0))

        def forward(self, x):
            return self.network(x) * self.scale + torch.tensor([1.0, 2.0, 3.0])

    exported = torch.export.export(Model(), (torch.ones(5, 4),), dynamic_shapes=[{0: torch.export.Dim.AUTO}])
    torch.export.save(exported, tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def changed(path: Path, **records: bytes) -> Path:
    """The archive with other records, by their names; new ones where there are none."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(content)).partition("/")[0]
    for name, value in records.items():
        content[f"{root}/{name}"] = value
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    return path


def test_a_program_of_tensors_has_nothing_pickled(program):
    assert pickled.records(program) == []
    assert pickled.records(changed(program)) == []


def test_example_inputs_that_run_code_are_found_without_running_it(program, tmp_path):
    changed(program, **{"data/sample_inputs/model.pt": saved(Trap(tmp_path / "sprung"))})

    assert pickled.records(program) == ["data/sample_inputs/model.pt"]
    assert not (tmp_path / "sprung").exists()
    with contextlib.suppress(Exception):  # what it leaves are no inputs
        torch.export.load(program)
    assert (tmp_path / "sprung").exists(), "the trap is one"


@pytest.mark.parametrize(
    "name",
    [
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/weights/model.pt",
        "data/aotinductor/model/a.so",
        "anything",
    ],
)
def test_whatever_is_not_known_to_be_harmless_is_named(program, name):
    assert pickled.records(changed(program, **{name: b"\x80\x02."})) == [name]


def test_another_layout_counts_as_pickled_as_a_whole(tmp_path):
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("version", "8.0")
    (tmp_path / "none.pt2").write_bytes(b"none")

    assert pickled.records(tmp_path / "old.pt2") == ["old.pt2"]
    assert pickled.records(tmp_path / "none.pt2") == ["none.pt2"]


NAME = "data/constants/model_constants_config.json"


@pytest.mark.parametrize(
    ("configs", "raw"),
    [
        ({NAME: config(TENSOR)}, {"data/constants/tensor_0"}),
        ({NAME: config({**TENSOR, "use_pickle": True})}, set()),
        ({NAME: config({"path_name": "tensor_0"})}, set()),
        ({NAME: config({**TENSOR, "path_name": "custom_obj_0"})}, set()),
        ({NAME: config({**TENSOR, "path_name": "../weights/tensor_0"})}, set()),
        ({NAME: config(TENSOR, {**TENSOR, "use_pickle": True})}, set()),
        ({NAME: config(TENSOR, {"path_name": "TENSOR_0", "use_pickle": True})}, set()),
        ({NAME: config(TENSOR), "data/constants/b_config.json": config({**TENSOR, "use_pickle": True})}, set()),
        ({NAME: b"{"}, set()),
        ({NAME: b"[]"}, set()),
        ({NAME: b'{"config": {"a": 1}}'}, set()),
        ({}, set()),
    ],
)
def test_a_record_is_raw_where_every_configuration_says_so(configs, raw):
    assert pickled.raw_tensors(configs) == raw
