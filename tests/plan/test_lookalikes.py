"""Files that stand where a plan should: each is named for what it is, by every reader of a plan's header.

The files are real, made by the libraries that make such files, but for those few whose makers are too large for a test.
"""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import warnings
import zipfile

import forged
import numpy as np
import pytest
import safetensors.numpy
from manifests import file

import mlflow_trt
from mlflow_trt import plan
from mlflow_trt.errors import ManifestError, PlanError
from mlflow_trt.plan import lookalikes
from mlflow_trt.plan.files import check_plan

PLAN = forged.full()


def zipped(content: bytes = PLAN) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model.engine", content)
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("model.engine")
        member.size = len(PLAN)
        archive.addfile(member, io.BytesIO(PLAN))
    return stream.getvalue()


def saved_by_torch(**options) -> bytes:
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, stream, **options)
    return stream.getvalue()


def timing_cache() -> bytes:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install mlflow-trt[rtx]")
    config = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    if not hasattr(config, "create_timing_cache"):
        pytest.skip("this release has no timing caches")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return bytes(config.create_timing_cache(b"").serialize())


def behind_metadata() -> bytes:
    metadata = json.dumps({"description": "Ultralytics YOLO11n model", "stride": 32, "imgsz": [640, 640]}).encode()
    return len(metadata).to_bytes(4, "little", signed=True) + metadata + PLAN


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a21" * 10 + b"abcd\nsize 53700000\n"
# What onnx 1.23.2 writes of a model of one node.
ONNX = bytes.fromhex(
    "080e3a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a0208014202101c"
)
S3_ERROR = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code></Error>'

FILES = {
    "empty": (lambda: b"", "is an empty file", "again"),
    "zeros": (lambda: bytes(5000), "is only zeros", "again"),
    "Git LFS": (lambda: LFS, "is a Git LFS pointer", "git lfs pull"),
    "timing cache": (timing_cache, "is a TensorRT timing cache", "--saveEngine"),
    "plan before 8.6": (lambda: b"ptrt" + bytes([213, 0, 0, 0]) + bytes(200), "before 8.6", "build the engine again"),
    "zip": (zipped, "is a zip archive", "unpack"),
    "torch": (saved_by_torch, "is a zip archive", "mlflow_trt.convert"),
    "older torch": (lambda: saved_by_torch(_use_new_zipfile_serialization=False), "is a pickle", "mlflow_trt.convert"),
    "gzip": (lambda: gzip.compress(PLAN), "is compressed", "decompress"),
    "bzip2": (lambda: bz2.compress(PLAN), "is compressed", "decompress"),
    "xz": (lambda: lzma.compress(PLAN), "is compressed", "decompress"),
    "tar": (tarred, "is a tar archive", "unpack"),
    "HTML": (lambda: b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is an HTML or XML page", "fetch"),
    "S3 error": (lambda: S3_ERROR, "is an HTML or XML page", "fetch"),
    "safetensors": (
        lambda: safetensors.numpy.save({"w": np.zeros((4, 4), np.float32)}),
        "is a safetensors file",
        "convert the model",
    ),
    "Ultralytics": (behind_metadata, "is an engine behind metadata", "leave out"),
    "pickle": (lambda: pickle.dumps({"a": 1}, protocol=4), "is a pickle", "mlflow_trt.convert"),
    "ONNX, graph first": (lambda: ONNX, "is an ONNX model", "mlflow_trt.convert"),
    "ONNX, by PyTorch": (
        lambda: b"\x08\x0a\x12\x07pytorch\x1a\x06" + bytes(9),
        "is an ONNX model",
        "mlflow_trt.convert",
    ),
    "JSON": (lambda: b'\xef\xbb\xbf {"message": "not found"}', "is a JSON file", "fetch"),
    "text": (lambda: "Nicht gefunden: größer als erlaubt\r\n".encode() * 40, "is a text file", "fetch"),
    "unknown": (lambda: b"\x7fELF\x02\x01\x01" + bytes(100), r"begins with b'\x7fELF'", "Plan.save"),
}


@pytest.fixture(params=FILES)
def lookalike(request):
    make, named, remedy = FILES[request.param]
    return make(), named, remedy


def said(error: PlanError, named: str, remedy: str) -> None:
    assert named in error.found
    assert "TensorRT 8.6 or newer (b'ftrt')" in error.expected
    assert remedy in error.remedy


def test_a_header_is_read_of_none(lookalike):
    content, named, remedy = lookalike
    with pytest.raises(PlanError) as caught:
        plan.read_header(content)
    said(caught.value, named, remedy)


def test_the_first_bytes_tell_it(lookalike):
    content, named, _ = lookalike
    with pytest.raises(PlanError) as caught:
        plan.read_header(content[: lookalikes.START_BYTES])
    assert named in caught.value.found


def test_a_character_that_is_cut_in_two_is_still_text():
    text = ("x" + "ä" * lookalikes.START_BYTES).encode()
    assert lookalikes.recognize(text).what == "a text file"
    assert lookalikes.recognize("ä".encode("latin-1") * 100) is None


@pytest.mark.parametrize("lookalike", [name for name in FILES if "ONNX" not in name], indirect=True)
def test_it_is_not_logged_as_an_engine(lookalike, tmp_path):
    content, named, remedy = lookalike
    (tmp_path / "model.engine").write_bytes(content)
    with pytest.raises(PlanError) as caught:
        mlflow_trt.save_model(tmp_path / "model.engine", tmp_path / "saved")
    said(caught.value, named, remedy)
    assert not (tmp_path / "saved").exists()


def test_a_record_that_describes_it_does_not_make_it_a_plan(lookalike, tmp_path):
    """Digest and size are right: somebody wrote the manifest around the wrong file."""
    content, named, remedy = lookalike
    (tmp_path / "model.plan").write_bytes(content)
    for check in (check_plan, lambda folder, made: plan.check_header(folder / made.file.path, made)):
        with pytest.raises(PlanError) as caught:
            check(tmp_path, forged.record_of(file("model.plan", content)))
        said(caught.value, named, remedy)
        assert caught.value.found.startswith("model.plan ")


def test_it_is_named_in_the_place_of_a_stored_plan(lookalike, tmp_path):
    """The manifest is that of the real plan: a clone without Git LFS, a store that answered with a page."""
    content, named, remedy = lookalike
    (tmp_path / "model.plan").write_bytes(content)
    with pytest.raises(PlanError) as caught:
        check_plan(tmp_path, forged.record_of(file("model.plan", PLAN)))
    assert f"has {len(content):,} bytes" in caught.value.found
    if "begins" not in named:
        assert named.removeprefix("is ") in caught.value.found
        assert remedy in caught.value.remedy
    assert "fetch the model again" in caught.value.remedy


def test_a_file_that_is_cut_short_is_not_told_what_it_is_by_right(tmp_path):
    content = safetensors.numpy.save({"w": np.zeros((4, 4), np.float32)})
    (tmp_path / "inputs.safetensors").write_bytes(content[:-1])
    with pytest.raises(PlanError) as caught:
        plan.verify(tmp_path, file("inputs.safetensors", content))
    assert caught.value.found == f"inputs.safetensors has {len(content) - 1:,} bytes."
    (tmp_path / "inputs.safetensors").write_bytes(LFS)
    with pytest.raises(PlanError, match="Git LFS pointer"):
        plan.verify(tmp_path, file("inputs.safetensors", content))


@pytest.mark.parametrize("made", [forged.full(), forged.full("10.15.1.29"), forged.engine_bytes()])
def test_a_plan_is_no_lookalike(made, tmp_path):
    assert lookalikes.recognize(made) is None
    header = plan.read_header(made)
    assert header.length == len(made)
    (tmp_path / "model.plan").write_bytes(made)
    right = forged.record_of(file("model.plan", made), header)
    assert plan.check_header(tmp_path / "model.plan", right) == header
    with pytest.raises(ManifestError, match="belong together"):
        plan.check_header(tmp_path / "model.plan", right.model_copy(update={"release": "9.9.9.9"}))


@pytest.mark.parametrize("change", [lambda p: p[:-1], lambda p: p + b"\0", lambda p: p[:64]])
@pytest.mark.parametrize("made", [forged.full(), forged.engine_bytes()], ids=["tensorrt", "tensorrt_rtx"])
def test_a_plan_of_either_runtime_that_is_not_whole_is_refused(made, change, tmp_path):
    content = change(made)
    (tmp_path / "model.engine").write_bytes(content)
    expected = f"has {len(content):,} bytes, and its header says {len(made):,}"
    with pytest.raises(PlanError, match=expected):
        mlflow_trt.save_model(tmp_path / "model.engine", tmp_path / "saved")
    with pytest.raises(PlanError, match=expected):
        check_plan(tmp_path, forged.record_of(file("model.engine", content), plan.read_header(made)))
