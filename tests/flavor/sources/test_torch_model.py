"""Models of the flavor pytorch: exported programs, and pickled code only where it is allowed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import stored_models

from mlflow_trt.errors import ConversionError, SettingError, StoreError
from mlflow_trt.flavor.sources import stored, torch_model

from .test_pickled import Trap, changed

torch = pytest.importorskip("torch")


def load(folder, allow_pickle=False):
    with stored.opened(folder) as source, torch_model.loaded(source, allow_pickle) as model:
        return model


@pytest.fixture
def program(tmp_path) -> Path:
    return stored_models.save_pytorch(tmp_path / "program")


@pytest.fixture
def pickle(tmp_path) -> Path:
    return stored_models.save_pytorch(tmp_path / "pickle", pickled=True)


def test_an_exported_program_needs_no_leave(program):
    model = load(program)

    assert isinstance(model, torch.export.ExportedProgram)
    x = torch.from_numpy(stored_models.EXAMPLE)
    torch.testing.assert_close(model.module()(x), stored_models.network()(x))


def test_a_pickle_is_refused_by_name_with_the_ways_out(pickle):
    with pytest.raises(SettingError, match=r"data/model\.pth") as caught:
        load(pickle)
    assert "serialization_format='pt2'" in caught.value.remedy
    assert "allow_pickle=True (--allow-pickle)" in caught.value.remedy


def test_a_pickle_is_loaded_where_it_is_allowed(pickle):
    model = load(pickle, allow_pickle=True)

    x = torch.from_numpy(stored_models.EXAMPLE)
    torch.testing.assert_close(model(x), stored_models.network()(x))


def test_no_code_of_a_pickle_runs_before_it_is_allowed(pickle, tmp_path):
    torch.save(Trap(tmp_path / "sprung"), pickle / "data/model.pth")

    with pytest.raises(SettingError, match="pickled"):
        load(pickle)
    assert not (tmp_path / "sprung").exists()
    load_errors = (ConversionError, SettingError)
    with pytest.raises(load_errors):  # it is no model
        load(pickle, allow_pickle=True)
    assert (tmp_path / "sprung").exists(), "the trap is one"


def test_a_pickle_beside_a_program_counts(program):
    (program / "data/model.pth").write_bytes(b"")

    with pytest.raises(SettingError, match=r"data/model\.pth"):
        load(program)


def test_a_program_with_pickled_objects_is_refused_by_name(program):
    changed(program / "data/model.pt2", **{"data/constants/custom_obj_0": b"\x80\x02."})

    with pytest.raises(SettingError, match="data/constants/custom_obj_0") as caught:
        load(program)
    assert "--allow-pickle" in caught.value.remedy
    assert isinstance(load(program, allow_pickle=True), torch.export.ExportedProgram)


def test_damaged_files_are_said_to_be(program, pickle):
    whole = (program / "data/model.pt2").read_bytes()
    (program / "data/model.pt2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="no whole archive"):
        load(program)
    (pickle / "data/model.pth").write_bytes(b"cut")
    with pytest.raises(ConversionError, match=r"data/model\.pth .*can't be loaded"):
        load(pickle, allow_pickle=True)
    (program / "data/model.pt2").unlink()
    with pytest.raises(StoreError, match="neither"):
        load(program)


def test_its_own_code_is_there_until_the_end_and_not_after(tmp_path):
    code = tmp_path / "code_of_a_model"
    code.mkdir()
    (code / "network_of_its_own.py").write_text(
        "import torch\nclass Own(torch.nn.Module):\n    def forward(self, x):\n        return x + 1\n"
    )
    sys.path.insert(0, str(code))
    try:
        from network_of_its_own import Own

        folder = stored_models.save_pytorch(
            tmp_path / "own", pickled=True, pytorch_model=Own(), code_paths=[str(code / "network_of_its_own.py")]
        )
    finally:
        sys.path.remove(str(code))
        del sys.modules["network_of_its_own"]
    before = list(sys.path)

    with stored.opened(folder) as source, torch_model.loaded(source, True) as model:
        assert model(torch.tensor(1)) == 2
        assert any(Path(p).is_relative_to(folder) for p in sys.path)
    assert sys.path == before
    del sys.modules["network_of_its_own"]


def test_a_class_that_is_not_here_is_named(tmp_path, pickle):
    class Gone(torch.nn.Module):
        pass

    Gone.__module__, Gone.__qualname__ = "nowhere_to_be_found", "Gone"
    sys.modules["nowhere_to_be_found"] = type(sys)("nowhere_to_be_found")
    sys.modules["nowhere_to_be_found"].Gone = Gone
    torch.save(Gone(), pickle / "data/model.pth")
    del sys.modules["nowhere_to_be_found"]

    with pytest.raises(ConversionError, match="nowhere_to_be_found") as caught:
        load(pickle, allow_pickle=True)
    assert "requirements.txt" in caught.value.remedy


def shapes_and_example(folder):
    with stored.opened(folder) as source, torch_model.loaded(source, True) as model:
        return torch_model.logged_shapes(model, source), torch_model.example(model, source)


def test_a_program_tells_its_shapes_and_its_example(program):
    shapes, (x,) = shapes_and_example(program)

    assert shapes == [("float32", (None, 4))]
    np.testing.assert_array_equal(x, stored_models.EXAMPLE)


def test_a_module_s_are_those_that_were_logged_beside_it(pickle):
    shapes, x = shapes_and_example(pickle)

    assert shapes == [("float32", (None, 4))]
    np.testing.assert_array_equal(x, stored_models.EXAMPLE)


def test_without_them_they_are_not_known(tmp_path):
    folder = stored_models.save_pytorch(tmp_path / "bare", pickled=True, input_example=None, signature=None)

    assert shapes_and_example(folder) == (None, None)


def test_an_example_whose_file_is_gone_is_none(pickle):
    (pickle / "input_example.json").unlink()

    assert shapes_and_example(pickle) == ([("float32", (None, 4))], None)


@pytest.mark.parametrize(
    ("arguments", "keywords"), [(([torch.ones(2), torch.ones(2)],), {}), ((torch.ones(2),), {"y": torch.ones(2)})]
)
def test_a_program_with_nested_or_named_inputs_does_not_tell(program, arguments, keywords):
    class Nested(torch.nn.Module):
        def forward(self, x, y=None):
            return x[0] + (x[1] if y is None else y)

    torch.export.save(torch.export.export(Nested(), arguments, keywords), program / "data/model.pt2")

    shapes, _ = shapes_and_example(program)
    assert shapes is None
