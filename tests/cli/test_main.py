"""The command line: what it prints for people and for programs, and its exit status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forged
import pytest
import stored_models
from manifests import H100, MANIFEST, MEASURED

import mlflow_trt
from mlflow_trt.cli.main import convert, log
from mlflow_trt.conversion.settings import CONVERTERS
from mlflow_trt.flavor import staging
from mlflow_trt.plan import manifest
from mlflow_trt.plan.manifest import LatencyRecord, ParityRecord

from .commands import ELSEWHERE, HERE, run


def command(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlflow_trt", *arguments], capture_output=True, text=True, timeout=300, **options
    )


def test_inspect_as_json_is_the_manifest(folder):
    result = run("inspect", folder, "--json")

    assert result.exit_code == 0
    assert manifest.parse(result.stdout) == MANIFEST


def test_check_says_yes_with_status_0(folder):
    result = run("check", folder, "--host", HERE)

    assert result.exit_code == 0
    assert "loads          tensorrt_rtx-1.6.1.120-sm80-sm86-sm89" in result.stdout
    assert "does not load  tensorrt-11.1.0.23-sm90" in result.stdout
    assert "tensorrt is not installed" in result.stdout


def test_check_says_no_with_status_1_and_the_reasons(folder):
    result = run("check", folder, "--host", ELSEWHERE)

    assert result.exit_code == 1
    assert "tensorrt_rtx 1.4.0.76 is installed, and the plan was built by 1.6.1.120." in result.stdout
    assert "The GPU has compute capability 7.5." in result.stdout
    assert "pip install tensorrt_rtx==1.6.1.120" in result.stdout


def test_check_of_a_machine_with_the_lean_runtime(tmp_path):
    name = "tensorrt-10.15.1.29-sm89"
    made = MEASURED.model_copy(
        update={"runtime": "tensorrt", "release": "10.15.1.29", "capabilities": ("8.9",), "version_compatible": True}
    )
    (tmp_path / "manifest.json").write_text(MANIFEST.model_copy(update={"plans": (made,)}).to_json())
    (tmp_path / "fleet.yaml").write_text(
        "edge: tensorrt_lean==11.4,sm_89\nold: {capability: '8.9', runtimes: {tensorrt_lean: 10.14.1.48}}\n"
    )

    result = run("check", str(tmp_path), "--host", "tensorrt_lean==11.4,sm_89")
    fleet = run("check", str(tmp_path), "--fleet", str(tmp_path / "fleet.yaml"), "--json")

    assert result.exit_code == 0, result.output
    assert f"  loads  {name}" in result.stdout
    assert "tensorrt_lean 11.4" in result.stdout
    hosts = json.loads(fleet.stdout)["hosts"]
    assert {where: h["accepted"] for where, h in hosts.items()} == {"edge": name, "old": None}
    assert fleet.exit_code == 1


def test_check_of_several_machines_fails_if_one_is_left_out(folder):
    result = run("check", folder, "--host", HERE, "--host", ELSEWHERE, "--json")

    hosts = json.loads(result.stdout)["hosts"]
    assert [h["accepted"] for h in hosts] == ["tensorrt_rtx-1.6.1.120-sm80-sm86-sm89", None]
    assert [p["accepted"] for p in hosts[1]["plans"]] == [False, False]
    assert result.exit_code == 1


def test_check_without_a_host_is_about_this_machine(folder):
    result = run("check", folder, "--json")

    (host,) = json.loads(result.stdout)["hosts"]
    assert host["host"]["os"] == sys.platform
    assert result.exit_code == (0 if host["accepted"] else 1)


@pytest.fixture
def benchmarked(monkeypatch):
    """Stands in for the measuring itself, which needs a GPU: what is tested here is what becomes of its report."""
    calls = []

    def set_report(parity: ParityRecord, latency: LatencyRecord, logged_to: str | None = "r1"):
        def benchmark(model_uri, **options):
            calls.append((model_uri, options))
            print("chatter of MLflow", flush=True)
            return mlflow_trt.BenchmarkReport(MANIFEST, parity, latency, options["backend"], logged_to)

        monkeypatch.setattr(mlflow_trt, "benchmark", benchmark, raising=False)
        return calls

    return set_report


def test_benchmark_prints_parity_and_latency(benchmarked):
    calls = benchmarked(MEASURED.parity, MEASURED.latency)

    result = run("benchmark", "models:/digits/3", "--runs", "7", "--device", "1")

    assert result.exit_code == 0
    assert calls == [("models:/digits/3", {"device": 1, "backend": "tensorrt", "runs": 7})]
    assert H100.gpu in result.stdout
    assert "2.400" in result.stdout
    assert "6,667" in result.stdout  # 16 per 2.4 ms
    assert "Backend: tensorrt. Logged to the run r1." in result.stdout
    assert "chatter" not in result.stdout


def test_benchmark_as_json_is_json_alone(benchmarked):
    benchmarked(MEASURED.parity, MEASURED.latency)

    result = run("benchmark", "models:/digits/3", "--json")

    content = json.loads(result.stdout)
    assert ParityRecord.model_validate(content["parity"]) == MEASURED.parity
    assert LatencyRecord.model_validate(content["latency"]) == MEASURED.latency
    assert (content["backend"], content["run_id"]) == ("tensorrt", "r1")
    assert "chatter" in result.stderr


def test_a_failed_parity_check_is_status_1(benchmarked):
    benchmarked(MEASURED.parity.model_copy(update={"status": "failed"}), MEASURED.latency)

    result = run("benchmark", "models:/digits/3", "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["parity"]["status"] == "failed"


def test_parity_that_was_not_measured_is_no_failure(benchmarked):
    benchmarked(
        ParityRecord(status="not_measured", reason="that is why"),
        LatencyRecord(status="not_measured", reason="so is that"),
    )

    result = run("benchmark", "x", "--backend", "reference")

    assert result.exit_code == 0
    assert "that is why" in result.stdout
    assert "so is that" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "nowhere"),
        ("check", "nowhere", "--json"),
        ("check", "{folder}", "--host", "a toaster"),
        ("benchmark", "nowhere"),
        ("log", "nowhere"),
        ("log", "models:/net/1"),
        ("log", "--from", "nowhere"),
        ("convert", "nowhere", "-o", "out.engine"),
        ("convert", "m:n", "-o", "out", "--input", "x"),
        ("convert", "m:n", "-o", "out", "--setting", "x"),
    ],
)
def test_an_expected_error_is_a_message_with_status_1_and_no_traceback(folder, arguments):
    if arguments[0] in ("benchmark", "log", "convert"):
        pytest.importorskip("torch")
    result = run(*(a.format(folder=folder) for a in arguments))

    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert "To do: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("inspect",),
        ("inspect", "model", "--no-such-option"),
        ("convert", "m:n"),
        ("convert", "m:n", "-o", "no/such/folder/out.engine"),
        ("log", "m:n", "--alias", "champion"),
        ("log", "m:n", "--measure-timeout", "0"),
        ("log",),
        ("log", "m:n", "--from", "models:/net/1"),
        ("log", "m:n", "--allow-pickle"),
        ("convert", "-o", "out"),
        ("convert", "m:n", "--from", "models:/net/1", "-o", "out"),
        ("benchmark", "m", "--runs", "0"),
        ("benchmark", "m", "--backend", "onnx"),
    ],
)
def test_wrong_usage_is_status_2(arguments):
    result = run(*arguments)

    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_measuring_may_take_as_long_as_by_the_api():
    for command in (convert, log):
        (option,) = [o for o in command.params if o.name == "measure_timeout"]
        assert option.default == staging.MEASURE_TIMEOUT


def test_the_commands_offer_every_converter():
    """The list stands twice: reading the settings' own would make each command slower to start."""
    for command in (convert, log):
        (option,) = [option for option in command.params if option.name == "converter"]
        assert tuple(option.type.choices) == CONVERTERS


def test_help_names_every_command_and_imports_neither_mlflow_nor_torch():
    code = (
        "import sys; from click.testing import CliRunner; from mlflow_trt.cli.main import main\n"
        "print(CliRunner().invoke(main, ['--help']).output)\n"
        "print([m for m in ('mlflow', 'torch', 'tensorrt_rtx') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    for name in ("convert", "log", "inspect", "check", "benchmark"):
        assert f"\n  {name} " in found
    assert found.splitlines()[-1] == "[]"


def test_the_installed_command():
    path = shutil.which("mlflow-trt", path=f"{Path(sys.executable).parent}")
    if path is None:
        pytest.skip("mlflow-trt is not installed here")
    found = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)

    assert mlflow_trt.__version__ in found.stdout


@pytest.fixture
def program_file(tmp_path) -> Path:
    torch = pytest.importorskip("torch", reason="needs the conversion extra")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    exported = torch.export.export(net, (torch.zeros(2, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


@pytest.mark.slow
def test_a_program_becomes_an_engine_and_the_engine_a_registered_version(program_file):
    converted = command(
        *("convert", "net.pt2", "-o", "net.engine", "--input", "float32[1:2:8,4]", "--precision", "fp16"),
        *("--capability", "8.6", "--setting", "optimization_level=3", "--converter", "onnx", "--json"),
    )
    assert converted.returncode == 0, converted.stderr
    record = json.loads(converted.stdout)["manifest"]["plans"][0]
    engine = Path("net.engine").read_bytes()
    assert record["file"]["path"] == "net.engine"
    assert record["file"]["size"] == len(engine)
    assert record["capabilities"] == ["8.6"]
    assert record["precision"]["requested"] == "fp16"
    assert (record["converter"], record["settings"]) == ("onnx", {"optimization_level": 3})
    assert record["profiles"][0] == {"input": {"min": [1, 4], "opt": [2, 4], "max": [8, 4]}}

    logged = command(
        *("log", "net.engine", "--name", "net", "--register", "net", "--alias", "champion", "--alias", "new", "--json")
    )
    assert logged.returncode == 0, logged.stderr
    content = json.loads(logged.stdout)
    assert content["registered"] == {"name": "net", "version": "1", "aliases": ["champion", "new"]}
    assert content["manifest"]["plans"][0]["file"]["sha256"] == record["file"]["sha256"]

    for uri in ("models:/net/1", "models:/net@champion", content["model_uri"]):
        shown = run("inspect", uri, "--json")
        assert json.loads(shown.stdout) == content["manifest"], shown.stderr
    release = record["release"]
    assert run("check", "models:/net@new", "--host", f"tensorrt_rtx=={release},sm_86").exit_code == 0
    assert run("check", "models:/net@new", "--host", f"tensorrt_rtx=={release},sm_89").exit_code == 1


@pytest.mark.slow
def test_a_module_is_logged_with_its_program(tmp_path, warm_programs):
    pytest.importorskip("torch", reason="needs the conversion extra")
    Path("mine.py").write_text(
        "import torch\ndef make():\n    print('building')\n    return torch.nn.Linear(4, 3).eval()\n"
    )

    logged = command(
        "log", "mine:make", "--input", "input=float32[1:2:8,4]", env={**os.environ, **warm_programs, "COLUMNS": "80"}
    )

    assert logged.returncode == 0, logged.stderr
    assert "1:2:8, 4" in logged.stdout
    assert "program/model.pt2" in logged.stdout
    assert "Logged as models:/m-" in logged.stdout
    assert "building" in logged.stderr


def test_a_model_of_mlflow_is_logged_with_an_engine(tmp_path):
    pytest.importorskip("torch")
    stored_models.log_pytorch("net")

    inputs = ("--input", "float32[1:2:8,4]", "--capability", "8.6")
    logged = run("log", "--from", "models:/net/latest", "--register", "net-trt", *inputs, "--json")
    saved = run("convert", "--from", "models:/net/1", "-o", tmp_path / "out.engine", *inputs)
    refused = run("convert", "--from", "models:/net@champion", "-o", tmp_path / "other.engine", *inputs)

    assert logged.exit_code == 0, logged.output
    content = json.loads(logged.stdout)
    assert content["registered"] == {"name": "net-trt", "version": "1", "aliases": []}
    assert content["manifest"]["source"]["uri"] == "models:/net/1"
    assert saved.exit_code == 0, saved.output
    assert "Source  models:/net/1" in saved.stdout
    assert (tmp_path / "out.engine").is_file()
    assert refused.exit_code == 1
    assert "models:/net@champion can't be read" in refused.stderr
    assert not (tmp_path / "other.engine").exists()


def test_a_pickle_is_loaded_by_name_alone(tmp_path):
    pytest.importorskip("torch")
    folder = stored_models.save_pytorch(tmp_path / "net", pickled=True)
    arguments = ("convert", "--from", folder, "-o", tmp_path / "out.engine", "--input", "float32[1:2:8,4]")

    refused = run(*arguments)
    allowed = run(*arguments, "--allow-pickle", "--capability", "8.6")

    assert refused.exit_code == 1
    assert "data/model.pth" in refused.stderr
    assert "--allow-pickle" in refused.stderr
    assert allowed.exit_code == 0, allowed.output


def test_without_torch_a_conversion_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)

    result = run("convert", "m:n", "-o", "out.engine")

    assert result.exit_code == 1
    assert "pip install" in result.stderr
    assert "mlflow-trt[convert-rtx]" in result.stderr


def test_converting_into_a_folder_that_is_not_empty_fails_before_anything_is_built(program_file):
    result = run("convert", "net.pt2", "-o", ".", "--input", "float32[1:2:8,4]")

    assert result.exit_code == 1
    assert "already exists" in result.stderr
    assert sorted(p.name for p in Path().iterdir()) == ["net.pt2"]


@pytest.mark.usefixtures("without_gpu")
def test_check_a_fleet(registry, versions, tmp_path):
    (tmp_path / "fleet.yaml").write_text(f"edge: {forged.HERE}\nold: tensorrt_rtx=={forged.RELEASE},sm_75\n")
    mlflow_trt.promote(registry.name, versions[0], gates=[])
    arguments = ("check", f"models:/{registry.name}@champion", "--fleet", tmp_path / "fleet.yaml")

    shown, parsed = run(*arguments), run(*arguments, "--json")

    assert shown.exit_code == parsed.exit_code == 1
    assert [line.split()[:2] for line in shown.stdout.splitlines() if line.startswith(("edge", "old"))] == [
        ["edge", "loads"],
        ["old", "does"],
    ]
    hosts = json.loads(parsed.stdout)["hosts"]
    assert [bool(h["accepted"]) for h in hosts.values()] == [True, False]


@pytest.mark.usefixtures("without_gpu")
def test_check_an_upgrade_over_all_models(registry, versions):
    mlflow_trt.promote(registry.name, versions[0], gates=[])

    breaks, stays = run("check", "--upgrade", "tensorrt_rtx==1.7"), run("check", "--upgrade", "tensorrt_rtx==1.6")

    assert breaks.exit_code == 1
    assert registry.name in breaks.stdout
    assert "breaks" in breaks.stdout
    mine = [line for line in stays.stdout.splitlines() if line.startswith(registry.name + " ")]
    assert mine
    assert all("loads" in line for line in mine)


def test_check_wants_a_model_or_an_upgrade():
    assert run("check").exit_code == 2
    assert run("check", "m", "--upgrade", "tensorrt_rtx==1.7").exit_code == 2
    assert run("check", "m", "--host", "sm_89", "--fleet", "f.yaml").exit_code == 2
