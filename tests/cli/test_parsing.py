"""What the command line takes in text: inputs, settings, and where a model comes from."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_trt.cli import tables
from mlflow_trt.cli.parsing import load, load_source, parse_input, parse_settings
from mlflow_trt.errors import SettingError
from mlflow_trt.inputs import DTYPES, Input


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=float32[1:8:32,3,224,224]", Input(((1, 8, 32), 3, 224, 224), name="x")),
        ("float32[2,3]", Input((2, 3))),
        (
            "ids=int64[1,1:16:64; 8,1:64:128]",
            Input(profiles=[(1, (1, 16, 64)), (8, (1, 64, 128))], dtype="int64", name="ids"),
        ),
        (
            "ids=int64[batch=1:8:32, tokens = 8:64:128]",
            Input((("batch", 1, 8, 32), ("tokens", 8, 64, 128)), "int64", "ids"),
        ),
        ("float32[n=1,4; n=8,4]", Input(profiles=[(("n", 1), 4), (("n", 8), 4)])),
        (" mask = bool [ 4 ] ", Input((4,), "bool", "mask")),
        ("n=int64[]", Input((), "int64", "n")),
        ("d.b=half[1]", Input((1,), "float16", "d.b")),
    ],
)
def test_an_input(text, expected):
    assert parse_input(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "x", "x=", "x=float32", "x=[1]", "x=float32[1", "x=float32[1]]", "x=y=float32[1]", "x:float32:1", " =int8[1]"],
)
def test_text_that_is_no_input_is_refused_with_an_example(text):
    with pytest.raises(SettingError, match=r"x=float32\[1:8:32,3,224,224\]"):
        parse_input(text)


@pytest.mark.parametrize(
    "dimension", ["a", "1.5", "-1", "1:2", "1:2:3:4", "1::3", ":", "1 2", "n=", "n=1:2", "n:1:2:3"]
)
def test_the_dimension_that_can_not_be_read_is_named(dimension):
    with pytest.raises(SettingError, match="is neither a size nor min:opt:max") as caught:
        parse_input(f"x=float32[3,{dimension},5]")
    assert repr(dimension) in caught.value.found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x=float32[0]", "Dimension 0"),
        ("x=float32[4:2:8]", "Dimension 0"),
        ("x=float32[1;1,2]", "2 different ranks"),
        ("x=float31[1]", "'float31' is not known"),
        ("x=float32[=1:2:3]", "named ''"),
        ("x=float32[a=b=1:2:3]", "named 'a=b'"),
        ("x=float32[n=1]", "always 1"),
    ],
)
def test_what_an_input_refuses_is_refused_here_too(text, message):
    with pytest.raises(SettingError, match=message):
        parse_input(text)


@given(
    sizes=st.lists(
        st.one_of(st.integers(1, 999), st.tuples(*[st.integers(1, 999)] * 3).map(sorted).map(tuple)),
        max_size=4,
    ),
    dtype=st.sampled_from(DTYPES),
)
def test_what_a_table_shows_can_be_given_again(sizes, dtype):
    spec = Input(sizes, dtype, "x")

    assert parse_input(f"x={dtype}[{tables.range_text(spec.ranges[0])}]") == spec


def test_settings_are_json_python_words_or_text():
    assert parse_settings(
        ["optimization_level=5", "a=true", "b=False", "c=None", "d=fp16", 'e=["aten.add"]', "f=1e-3", "g=x=y"]
    ) == {
        "optimization_level": 5,
        "a": True,
        "b": False,
        "c": None,
        "d": "fp16",
        "e": ["aten.add"],
        "f": 1e-3,
        "g": "x=y",
    }


@pytest.mark.parametrize("text", ["", "optimization_level", "=5", "a b=1", "-x=1"])
def test_text_that_is_no_setting_is_refused(text):
    with pytest.raises(SettingError, match="can't be read"):
        parse_settings([text])


def test_a_setting_comes_once():
    with pytest.raises(SettingError, match="workspace_size is given twice"):
        parse_settings(["workspace_size=1", "workspace_size=2"])


@pytest.fixture
def module(tmp_path):
    """A module in the working directory, under a name of its own: Python keeps modules by name."""
    pytest.importorskip("torch")
    name = f"mine_{abs(hash(str(tmp_path)))}"
    Path(f"{name}.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x): return x + 1\n"
        "net = Net()\n"
        "def make(): return net\n"
        "number = 3\n"
        "def broken(): raise RuntimeError('mine')\n"
        "class models: make = staticmethod(make)\n"
    )
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("attribute", ["net", "make", "Net", "models.make"])
def test_a_model_comes_from_a_module_of_the_working_directory(module, attribute):
    before = list(sys.path)

    assert load_source(f"{module}:{attribute}")(1) == 2
    assert sys.path == before


def test_a_model_comes_from_an_exported_program(module):
    import torch

    torch.export.save(torch.export.export(load_source(f"{module}:net"), (torch.ones(2),)), "net.pt2")

    assert load_source("net.pt2").module()(torch.ones(2)).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{module}:nothing", "has no 'nothing'"),
        ("{module}:net.nothing", "has no 'net.nothing'"),
        ("{module}:number", "is a int"),
        ("no_such_module_at_all:net", "no module 'no_such_module_at_all'"),
        ("{module}.sub:net", "no module"),
        ("{module}", "neither a .pt2 or .onnx file nor module:attribute"),
        ("some/path.pb", "neither a .pt2 or .onnx file nor module:attribute"),
        ("nowhere.pt2", "nowhere.pt2 can't be read"),
    ],
)
def test_a_source_that_is_no_model_is_refused(module, text, message):
    with pytest.raises(SettingError, match=message):
        load_source(text.format(module=module))


def test_a_uri_is_left_to_be_opened_and_anything_else_is_refused(tmp_path):
    for uri in ("models:/net/1", "models:/net@champion", "runs:/r/net", "s3://bucket/net"):
        assert load(None, uri) == uri
    (tmp_path / "MLmodel").write_text("flavors: {}")
    assert load(None, str(tmp_path)) == str(tmp_path)
    for text in ("net:net", "nowhere.pt2", str(tmp_path.parent)):
        with pytest.raises(SettingError, match="neither the URI of a model nor a folder") as caught:
            load(None, text)
        assert "without --from" in caught.value.remedy


def test_a_file_that_is_no_exported_program_is_refused(module):
    Path("bad.pt2").write_bytes(b"PK\x03\x04 not much of an archive")
    with pytest.raises(SettingError, match=r"bad\.pt2 can't be read"):
        load_source("bad.pt2")


def test_an_error_of_the_model_itself_stays_what_it_is(module):
    with pytest.raises(RuntimeError, match="mine"):
        load_source(f"{module}:broken")


def test_a_module_that_lacks_something_it_imports_says_so(tmp_path):
    pytest.importorskip("torch")
    Path("lacking_something.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_source("lacking_something:net")
