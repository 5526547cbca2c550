"""The real Triton reads what was written: ``tritonserver`` from PyPI's nvidia-pytriton, on the CPU.

It has no TensorRT backend, and the plans are none: so a configuration counts as taken when nothing but that backend is
missing, and its twin, the same text with the Python backend in its place, loads, warms up from the same files and
answers. Every test looks at one server that was started once over all of these models.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from trt_plans import CLASSIFIER, GOLDEN, interface, plan, rows, save, tensor

from benchmarks import triton
from mlflow_trt.export import export_triton
from mlflow_trt.plan.manifest import ShapeRange

pb = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
json_format = pytest.importorskip("google.protobuf.json_format")
text_format = pytest.importorskip("google.protobuf.text_format")

pytestmark = pytest.mark.xdist_group("triton")

TWIN = ".twin"
MODEL = '''\
"""Answers zeros of the configured shapes, and writes down what it was called with."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, arguments):
        self.config = json.loads(arguments["model_config"])
        self.calls = (Path(__file__).parent / "calls").open("a")

    def execute(self, requests):
        answers = []
        for request in requests:
            inputs = {t.name(): t.as_numpy() for t in request.inputs()}
            seen = {name: [str(a.dtype), list(a.shape), a.tobytes().hex()] for name, a in inputs.items()}
            self.calls.write(json.dumps({"together": len(requests), "inputs": seen}) + "\\n")
            self.calls.flush()
            rows = next(iter(inputs.values())).shape[:1] if self.config["max_batch_size"] else ()
            outputs = []
            for output in self.config["output"]:
                dims = output["reshape"]["shape"] if "reshape" in output else output["dims"]
                shape = (*rows, *(max(int(d), 1) for d in dims))
                dtype = triton.triton_string_to_numpy(output["data_type"])
                outputs.append(triton.Tensor(output["name"], np.zeros(shape, dtype)))
            answers.append(triton.InferenceResponse(outputs))
        return answers
'''


def _batch(*shape, name="x"):
    return {name: ShapeRange(min=(1, *shape), opt=(2, *shape), max=(8, *shape))}


PROFILES = (_batch(4), {"x": ShapeRange(min=(9, 4), opt=(16, 4), max=(64, 4))})
TYPES = ("bool", "uint8", "int8", "int32", "int64", "float16", "float32")

MODELS = {
    "batched": ([plan(golden=GOLDEN)], {}),
    "tuned": (
        [plan(golden=GOLDEN)],
        {"preferred_batch_sizes": (4, 8), "delay": 0.0025, "instances": 2, "gpus": (0, 1), "keep_versions": None},
    ),
    "unjoined": ([plan()], {"batching": False, "keep_versions": 3}),
    "profiles": ([plan(profiles=PROFILES, golden={**GOLDEN, "1.opt/x": rows(16)})], {}),
    "fleet": ([plan("a", capabilities=("8.0",)), plan("b", capabilities=("9.0", "10.0"))], {}),
    "fixed": (
        [
            plan(
                interface=interface(
                    [tensor("x", (2, 4)), tensor("scale", (1,))], [tensor("y", (2, 3)), tensor("n", ("found",))]
                ),
                profiles=({"x": ShapeRange(min=(2, 4), opt=(2, 4), max=(2, 4))},),
                golden={"0.opt/x": rows(2), "0.opt/scale": np.array([2.5], np.float32)},
            )
        ],
        {},
    ),
    "flat": (
        [
            plan(
                interface=interface([tensor("x", ("batch",))], [tensor("y", ("batch",))]),
                profiles=(_batch(),),
                golden={"0.opt/x": np.array([7, 8], np.float32)},
            )
        ],
        {},
    ),
    "images": (
        [
            plan(
                interface=interface([tensor("x", ("batch", 3, "height", "width"))], [tensor("y", ("batch", "height"))]),
                profiles=({"x": ShapeRange(min=(1, 3, 1, 1), opt=(1, 3, 4, 4), max=(4, 3, 9, 9))},),
                golden={"0.opt/x": np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)},
            )
        ],
        {},
    ),
    "types": (
        [
            plan(
                interface=interface([tensor(d, ("batch", 2), d) for d in TYPES], [tensor("y", ("batch", 2), "int64")]),
                profiles=({d: r for name in TYPES for d, r in _batch(2, name=name).items()},),
                golden={f"0.opt/{d}": np.array([[0, 1], [1, 0]], d) for d in TYPES},
            )
        ],
        {},
    ),
    "bfloat16": (
        [
            plan(
                interface=interface([tensor("x", ("batch", 4), "bfloat16")], [tensor("y", ("batch", 3), "bfloat16")]),
                golden=GOLDEN,
            )
        ],
        {},
    ),
    "odd née $x 'y'": (
        [
            plan(
                interface=interface(
                    [tensor("x", ("batch", 4), binding='in "0" \\ é\n')], [tensor("y", ("batch", 3), binding="out:0/é")]
                ),
                golden=GOLDEN,
            )
        ],
        {},
    ),
}
"""Name → the version's plans and the options of its export."""

WITH_TWINS = [name for name in MODELS if name not in ("bfloat16",)]  # numpy has no bfloat16

BROKEN = {
    "unknown-type": (r"TYPE_FP32", "TYPE_FP99", "failed to read text proto"),
    "no-such-field": (r"max_batch_size", "maximum_batch_size", "failed to read text proto"),
    "preferred-too-large": (r"dynamic_batching \{", "dynamic_batching { preferred_batch_size: [9]", "preferred size"),
    "no-dims": (r"dims: \[3\]", "", "must specify 'dims'"),
    # Why a model with scalars is refused before: neither this nor an empty dims is taken.
    "scalar": (r"\n  dims: \[2, 4\]", " dims: [1] reshape { }", "scalar tensors are not supported"),
}
"""Name → what in the configuration becomes what, and why Triton then refuses it."""


def _twin(folder: Path, name: str) -> Path:
    """A copy of an exported model with the Python backend and without GPUs."""
    twin = folder.parent / name
    shutil.copytree(folder, twin)
    text = (twin / "config.pbtxt").read_text()
    text = re.sub(r'^name: ".*"', f'name: "{name}"', text, count=1)
    text = text.replace('platform: "tensorrt_plan"', 'backend: "python"').replace("KIND_GPU", "KIND_CPU")
    text = re.sub(r"\n  (gpus|profile): \[.*\]", "", text)
    (twin / "config.pbtxt").write_text(text)
    for version in (p for p in twin.iterdir() if p.name.isdigit()):
        (version / "model.py").write_text(MODEL)
    return twin


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Path]:
    """Name → the model's folder in one repository, with twins and broken ones beside them."""
    base = tmp_path_factory.mktemp("triton")
    repository = base / "repository"
    folders = {}
    for number, (name, (plans, options)) in enumerate(MODELS.items()):
        folders[name] = export_triton(save(base / str(number), *plans), repository, name=name, **options).path
    for version in (2, 3):
        other = save(base / f"batched-{version}", plan(f"version {version}", golden=GOLDEN))
        export_triton(other, repository, name="batched", version=version)
        export_triton(other, repository, name="tuned", version=version, **MODELS["tuned"][1])
    for number, name in enumerate(WITH_TWINS):
        folders[f"{name}{TWIN}"] = _twin(folders[name], f"{number}{TWIN}")
    for name, (pattern, replacement, _) in BROKEN.items():
        source = "fixed" if name == "scalar" else "batched"
        shutil.copytree(folders[source], repository / name)
        text = (repository / name / "config.pbtxt").read_text().replace(f'name: "{source}"', f'name: "{name}"')
        changed, count = re.subn(pattern, replacement, text)
        assert count
        (repository / name / "config.pbtxt").write_text(changed)
    short = _twin(folders["batched"], "short-warmup") / "warmup" / "0.opt.0"
    short.write_bytes(short.read_bytes()[:-1])
    (_twin(folders["batched"], "no-warmup") / "warmup" / "0.opt.0").unlink()
    return folders


@pytest.fixture(scope="module")
def server(exported) -> Iterator[triton.Triton]:
    try:
        triton.installation()
    except RuntimeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with triton.running(next(iter(exported.values())).parent, "--exit-timeout-secs", "0") as running:
        yield running


@pytest.fixture(scope="module")
def states(server) -> dict[str, dict[str, str]]:
    return server.models()


def written(folder: Path):
    return text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())


def calls(folder: Path, version: int = 1) -> list[dict]:
    return [json.loads(line) for line in (folder / str(version) / "calls").read_text().splitlines()]


@pytest.mark.parametrize("name", MODELS)
def test_triton_takes_the_configuration_and_misses_only_its_tensorrt_backend(name, states):
    versions = [state for key, state in states.items() if key.startswith(f"{name}/")]

    assert versions
    for state in versions:
        assert state["state"] == "UNAVAILABLE"
        assert state["reason"].startswith("Invalid argument: unable to find backend library for backend 'tensorrt'")


@pytest.mark.parametrize("name", BROKEN)
def test_triton_refuses_a_configuration_that_is_wrong(name, states, server):
    """What keeps the test above honest: the same Triton does not get as far as the backend here."""
    assert "state" not in states[f"{name}/"]
    refusal = re.search(rf"Poll failed for model directory '{name}': (.*)", server.log.read_text())
    assert refusal
    assert BROKEN[name][2] in refusal[1]


@pytest.mark.parametrize("name", WITH_TWINS)
def test_the_twin_is_ready_with_exactly_what_was_written(name, exported, states, server):
    folder = exported[f"{name}{TWIN}"]
    newest = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())

    assert states[f"{folder.name}/{newest}"]["state"] == "READY"
    answered = json_format.ParseDict(server.get(f"/v2/models/{folder.name}/config"), pb.ModelConfig())
    ours = written(folder)
    # What Triton fills in where a configuration does not say it.
    answered.ClearField("optimization")
    answered.ClearField("default_model_filename")
    for group in answered.instance_group:
        group.ClearField("name")
    if not ours.HasField("dynamic_batching") or not ours.dynamic_batching.preferred_batch_size:
        assert list(answered.dynamic_batching.preferred_batch_size) in ([], [ours.max_batch_size])
        answered.dynamic_batching.ClearField("preferred_batch_size")
        if not ours.HasField("dynamic_batching"):
            answered.ClearField("dynamic_batching")
    assert answered == ours


def test_the_twin_differs_from_what_was_exported_in_backend_and_gpu_alone(exported):
    for name in WITH_TWINS:
        ours, twin = written(exported[name]), written(exported[f"{name}{TWIN}"])
        for config in (ours, twin):
            for field in ("name", "platform", "backend"):
                config.ClearField(field)
            for group in config.instance_group:
                for field in ("kind", "gpus", "profile"):
                    group.ClearField(field)
        assert ours == twin


def test_versions_as_many_as_were_asked_for(exported, states):
    def loaded(name: str) -> list[str]:
        folder = exported[f"{name}{TWIN}"].name
        return sorted(
            k.partition("/")[2] for k, s in states.items() if k.startswith(f"{folder}/") if s["state"] == "READY"
        )

    assert loaded("batched") == ["3"]
    assert loaded("tuned") == ["1", "2", "3"]


def test_warm_up_runs_one_row_of_each_golden_point_as_often_as_the_batch_is_large(exported, server):
    seen = calls(exported[f"batched{TWIN}"], version=3)[:11]

    assert sorted(call["together"] for call in seen) == [1] + [2] * 2 + [8] * 8
    for call in seen:
        row = rows(1, start={1: 0, 2: 10, 8: 100}[call["together"]])
        assert call["inputs"] == {"input_0": ["float32", [1, 4], row.tobytes().hex()]}


def test_warm_up_of_several_profiles(exported, server):
    seen = calls(exported[f"profiles{TWIN}"])

    assert sorted(call["together"] for call in seen) == [1] + [2] * 2 + [8] * 8 + [16] * 16


def test_warm_up_gives_whole_tensors_where_there_is_no_batch(exported, server):
    [call] = calls(exported[f"fixed{TWIN}"])

    assert call["inputs"] == {
        "x": ["float32", [2, 4], rows(2).tobytes().hex()],
        "scale": ["float32", [1], np.float32(2.5).tobytes().hex()],
    }


def test_warm_up_of_every_type(exported, server):
    calls_ = calls(exported[f"types{TWIN}"])

    assert len(calls_) == 2
    assert calls_[0]["inputs"] == {d: [d, [1, 2], np.array([0, 1], d).tobytes().hex()] for d in TYPES}


@pytest.mark.parametrize(
    ("name", "reason"),
    [("short-warmup", "warmup setting expects 16 bytes, but the data provided from 0.opt.0"), ("no-warmup", "0.opt.0")],
)
def test_warm_up_files_are_really_read(name, reason, states):
    assert states[f"{name}/3"]["state"] == "UNAVAILABLE"
    assert reason in states[f"{name}/3"]["reason"]


@pytest.mark.parametrize(
    ("name", "inputs", "seen", "answered"),
    [
        ("batched", {"input_0": (3, 4)}, {"input_0": [3, 4]}, {"output0": (3, 3)}),
        ("flat", {"x": (3, 1)}, {"x": [3]}, {"y": (3, 1)}),
        ("fixed", {"x": (2, 4), "scale": (1,)}, {"x": [2, 4], "scale": [1]}, {"y": (2, 3), "n": (1,)}),
        ("images", {"x": (2, 3, 5, 7)}, {"x": [2, 3, 5, 7]}, {"y": (2, 1)}),
    ],
)
def test_shapes_of_client_and_engine(name, inputs, seen, answered, exported, server):
    folder = exported[f"{name}{TWIN}"]
    given = []
    for binding, shape in inputs.items():
        given.append(http.InferInput(binding, shape, "FP32"))
        given[-1].set_data_from_numpy(np.ones(shape, np.float32))
    with contextlib.closing(http.InferenceServerClient(server.http)) as client:
        answer = client.infer(folder.name, given)

    newest = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    assert {k: shape for k, (_, shape, _) in calls(folder, newest)[-1]["inputs"].items()} == seen
    assert {output: answer.as_numpy(output).shape for output in answered} == answered


def test_a_size_that_was_not_exported_is_refused_by_triton(exported, server):
    for shape in ((9, 4), (1, 5)):
        given = http.InferInput("input_0", shape, "FP32")
        given.set_data_from_numpy(np.ones(shape, np.float32))
        with (
            contextlib.closing(http.InferenceServerClient(server.http)) as client,
            pytest.raises(Exception, match=r"batch-size must be <= 8|unexpected shape for input"),
        ):
            client.infer(exported[f"batched{TWIN}"].name, [given])


def test_an_unfinished_export_is_no_model(exported, tmp_path):
    """What a killed export leaves has a folder whose name is not that of its configuration."""
    try:
        triton.installation()
    except RuntimeError as error:
        pytest.skip(str(error))
    repository = tmp_path / "repository"
    shutil.copytree(exported[f"batched{TWIN}"], repository / ".batched-abcd")
    shutil.copytree(exported[f"batched{TWIN}"], repository / exported[f"batched{TWIN}"].name)
    with triton.running(repository) as running:
        found = running.models()

    assert {key: state.get("state") for key, state in found.items() if state.get("state") == "READY"} == {
        f"{exported[f'batched{TWIN}'].name}/3": "READY"
    }
    assert not [key for key, state in found.items() if key.startswith(".") and state.get("state")]


def test_the_classifier_s_names_are_the_engine_s():
    """The twins' inputs above are named by the binding, not as the model's caller knows them."""
    assert (CLASSIFIER.inputs[0].name, CLASSIFIER.inputs[0].binding) == ("x", "input_0")
