"""Plans at rest: what their first bytes say, damage that is noticed, and the folder they are written to."""

import dataclasses

import numpy as np
import pytest
from manifests import MANIFEST, MEASURED, file

from mlflow_trt.errors import PlanError, SettingError
from mlflow_trt.plan import files, manifest
from mlflow_trt.plan.files import GoldenTensors, Plan
from mlflow_trt.plan.manifest import Manifest

# The first 64 bytes of real plans, built by tensorrt_rtx 1.6.1.120 from a network of one layer.
SM86 = bytes.fromhex(
    "76747274000000000200000000000000e4090200000000000106017876747274"
    "04000000000000000000000000000000f0320000000000000000000000000000"
)
SM80_SM89 = bytes.fromhex(
    "76747274000000000200000000000000ec090200000000000106017876747274"
    "0a000000000000000000000000000000f0320000000000000000000000000000"
)
ALL = bytes.fromhex(
    "76747274000000000200000000000000fc090200000000000106017876747274"
    "3f000000000000000000000000000000f0320000000000000000000000000000"
)


@pytest.mark.parametrize(
    ("start", "length", "capabilities"),
    [
        (SM86, 133_604, ("8.6",)),
        (SM80_SM89, 133_612, ("8.0", "8.9")),
        (ALL, 133_628, ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")),
    ],
)
def test_the_header_of_a_real_plan(start, length, capabilities):
    assert files.read_header(start) == files.Header("tensorrt_rtx", "1.6.1.120", length, capabilities)


@pytest.mark.parametrize("names", [("SM86",), ("SM80", "SM89"), ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")])
def test_the_header_of_a_plan_that_the_installed_release_builds(names):
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install mlflow-trt[rtx]")
    names = [name for name in names if name in trt.ComputeCapability.__members__]  # 1.4 has no SM121
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    layer = network.add_activation(network.add_input("x", trt.float32, (2, 3)), trt.ActivationType.RELU)
    network.mark_output(layer.get_output(0))
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    serialized = bytes(builder.build_serialized_network(network, config))

    header = files.read_header(serialized)

    assert header.runtime == "tensorrt_rtx"
    assert header.release == trt.__version__
    assert header.length == len(serialized)
    assert header.capabilities == tuple(f"{n[2:-1]}.{n[-1]}" for n in names)
    files.check_length(header, len(serialized))


def test_a_plan_for_the_gpu_it_was_built_on_names_no_capability():
    start = SM86[:32] + bytes(8) + SM86[40:]

    assert files.read_header(start).capabilities is None


def test_a_header_of_full_tensorrt_says_release_and_length():
    start = b"ftrt" + bytes(12) + (5_000_000_000).to_bytes(8, "little") + bytes([11, 1, 0, 23]) + bytes(36)

    assert files.read_header(start) == files.Header("tensorrt", "11.1.0.23", 5_000_000_000, None)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "is an empty file"),
        (b"vtr\xff", "begins with"),
        (b"\x08\x07\x12\x07pytorch", "is an ONNX model"),
        (b"PK\x03\x04" + bytes(60), "is a zip archive"),
        (bytes(64), "is only zeros"),
        (b"vtrt", "ends after 4 bytes"),
        (SM86[:63], "ends after 63 bytes"),
    ],
)
def test_bytes_that_are_no_plan_are_refused(start, message):
    with pytest.raises(PlanError, match=message):
        files.read_header(start)


@pytest.mark.parametrize("size", [64, 133_603, 133_605])
def test_a_plan_cut_short_or_grown_is_noticed_by_its_header(size):
    with pytest.raises(PlanError, match="133,604"):
        files.check_length(files.read_header(SM86), size)


def test_a_file_that_is_as_it_was_written(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x" * 3_000_000)

    assert files.verify(tmp_path, file("a.bin", b"x" * 3_000_000)) == tmp_path / "a.bin"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is missing"), (b"abc", "has 3 bytes"), (b"", "has 0 bytes"), (b"abcdef!", "has 7 bytes")],
)
def test_a_file_that_is_missing_or_of_another_size(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(PlanError, match=message):
        files.verify(tmp_path, file("a.bin", b"abcdef"))


def test_a_file_altered_by_one_bit(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abcdeg")
    with pytest.raises(PlanError, match="SHA-256"):
        files.verify(tmp_path, file("a.bin", b"abcdef"))


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(PlanError, match="is missing"):
        files.verify(tmp_path, file("a.bin", b"abcdef"))


GOLDEN = GoldenTensors(
    inputs={
        "0.min/x": np.zeros((1, 2), np.float32),
        "0.min/m": np.array([True]),
        "0.user0/x": np.ones((3, 2), np.float32),
        "0.user0/m": np.array([True, False, True]),
        "1.opt/x": np.ones((8, 2), np.float32)[:, ::-1],
        "1.opt/m": np.ones(8, bool),
    },
    outputs={
        "0.min/y/z": np.zeros(1, np.int64),
        "0.user0/y/z": np.ones(3, np.int64),
        "1.opt/y/z": np.ones(8, np.int64),
    },
)


def made(record=MEASURED, serialized=ALL, **other) -> Plan:
    return Plan(serialized, Manifest(interface=MANIFEST.interface, plans=(record,)), **other)


def test_golden_points_keep_their_order_and_names():
    points = list(GOLDEN.points())

    assert [(p, where) for p, where, _, _ in points] == [(0, "min"), (0, "user0"), (1, "opt")]
    assert list(points[1][2]) == ["x", "m"]
    assert points[1][2]["x"].shape == (3, 2)
    assert list(points[2][3]) == ["y/z"]


def test_golden_tensors_survive_the_folder(tmp_path):
    written = files.write([made(golden=GOLDEN)], tmp_path)

    read = files.read_golden(tmp_path, written.golden)

    for before, after in ((GOLDEN.inputs, read.inputs), (GOLDEN.outputs, read.outputs)):
        assert set(before) == set(after)
        for name, array in before.items():
            np.testing.assert_array_equal(array, after[name])
            assert array.dtype == after[name].dtype


def test_golden_tensors_that_were_altered_are_not_read(tmp_path):
    written = files.write([made(golden=GOLDEN)], tmp_path)
    path = tmp_path / "golden" / "outputs.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(PlanError, match=r"golden/outputs\.safetensors has the SHA-256"):
        files.read_golden(tmp_path, written.golden)


def test_the_folder_of_one_plan(tmp_path):
    program = tmp_path / "exported.pt2"
    program.write_bytes(b"the program")
    torch = pytest.importorskip("torch")
    folder = tmp_path / "model"
    folder.mkdir()

    written = files.write([made(golden=GOLDEN, program=program, runtime_cache=b"kernels")], folder)

    assert manifest.read(folder) == written
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert found == [
        "golden/inputs.safetensors",
        "golden/outputs.safetensors",
        "manifest.json",
        "plans/tensorrt_rtx-1.6.1.120-sm80-sm86-sm89/model.plan",
        "plans/tensorrt_rtx-1.6.1.120-sm80-sm86-sm89/runtime-cache.bin",
        "program/model.pt2",
    ]
    for entry in written.files():
        files.verify(folder, entry)
    assert (folder / written.plans[0].file.path).read_bytes() == ALL
    assert written.program.torch == torch.__version__


def test_the_program_is_left_out_on_request(tmp_path):
    program = tmp_path / "exported.pt2"
    program.write_bytes(b"the program")
    folder = tmp_path / "model"
    folder.mkdir()

    assert files.write([made(program=program)], folder, program=False).program is None
    assert not (folder / "program").exists()


def test_plans_for_different_targets_share_a_folder(tmp_path):
    other = MEASURED.model_copy(update={"release": "1.5.0.114", "capabilities": None})

    written = files.write([made(), made(other, SM86)], tmp_path)

    assert [r.file.path for r in written.plans] == [
        "plans/tensorrt_rtx-1.6.1.120-sm80-sm86-sm89/model.plan",
        "plans/tensorrt_rtx-1.5.0.114-any/model.plan",
    ]
    assert [r.file.size for r in written.plans] == [64, 64]
    assert (tmp_path / written.plans[1].file.path).read_bytes() == SM86
    assert [r.runtime_cache for r in written.plans] == [None, None]


def test_two_plans_for_one_target_are_refused(tmp_path):
    with pytest.raises(SettingError, match="Two plans are for the same target"):
        files.write([made(), made(serialized=SM86)], tmp_path)


def test_the_source_is_that_of_all_plans(tmp_path):
    source = MANIFEST.source
    other = MEASURED.model_copy(update={"release": "1.5.0.114", "capabilities": None})

    def of(found, record=MEASURED):
        manifest = Manifest(interface=MANIFEST.interface, plans=(record,), source=found)
        return Plan(made(record).serialized, manifest)

    assert files.write([of(None), of(source, other)], tmp_path).source == source
    same = source.model_copy(update={"uri": "models:/m-8a1f0c5be1b94a5f9ac53c9a5f1b8d2e"})
    assert files.write([of(source), of(same, other)], tmp_path).source == source
    changed = source.model_copy(update={"files": (source.files[0].model_copy(update={"sha256": "0" * 64}),)})
    with pytest.raises(SettingError, match="converted from different models: models:/resnet/3, models:/resnet/3"):
        files.write([of(source), of(changed, other)], tmp_path)


def test_plans_of_different_models_are_refused(tmp_path):
    interface = MANIFEST.interface.model_copy(update={"outputs": MANIFEST.interface.outputs[:1]})
    other = Plan(SM86, Manifest(interface=interface, plans=(MEASURED.model_copy(update={"release": "1.5.0.114"}),)))

    with pytest.raises(SettingError, match="differ in their inputs or outputs"):
        files.write([made(), other], tmp_path)


def test_a_refusal_writes_no_manifest(tmp_path):
    with pytest.raises(SettingError):
        files.write([made(), made()], tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_the_bare_engine_is_byte_for_byte_the_plan(tmp_path):
    path = made().save(tmp_path / "model.engine")

    assert path.read_bytes() == ALL


def test_a_plan_knows_its_record():
    assert made().record is MEASURED
    assert dataclasses.replace(made(), serialized=SM86).record is MEASURED
