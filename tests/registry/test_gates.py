"""Each gate lets pass what is right and refuses what is wrong, for a real reason: on a real server, with real files."""

from __future__ import annotations

import dataclasses
import shutil

import forged
import pytest
from registries import crown, judged

from mlflow_trt import store
from mlflow_trt.plan.manifest import Host
from mlflow_trt.registry import gates

# ---- integrity -----------------------------------------------------------------------------------------------------


def test_a_whole_version_passes(registry, versions):
    verdict = judged(registry, versions[0], gates.Integrity())

    assert verdict.status == "passed"
    assert [row[-1] for row in verdict.tables[0].rows] == ["as the manifest says"] * 3


@pytest.mark.parametrize("path", ["model.plan", "inputs.safetensors"])
def test_one_flipped_byte_is_refused(registry, path):
    version = registry.log(forged.plan())
    # The good file lies in the local cache: what counts is the store.
    model = store.open_model(f"models:/{registry.name}/{version}")
    model.fetch(model.manifest.files())
    forged.flip_one_byte(next(registry.stored(version).rglob(path)))

    verdict = judged(registry, version, gates.Integrity())

    assert verdict.status == "failed"
    assert "SHA-256" in verdict.reasons[0]
    assert path in verdict.reasons[0]


def test_a_missing_plan_and_a_short_one_are_refused(registry):
    version = registry.log(forged.plan())
    path = next(registry.stored(version).rglob("model.plan"))

    path.write_bytes(path.read_bytes()[:-1])
    short = judged(registry, version, gates.Integrity())

    assert short.status == "failed"
    assert "bytes" in short.reasons[0]


def test_another_plan_under_a_manifest_that_fits_is_refused_by_the_registrys_tag(registry):
    version = registry.log(forged.plan("mine"))
    other = registry.log(forged.plan("somebody else's"))
    mine, theirs = registry.stored(version), registry.stored(other)
    shutil.copyfile(theirs / "manifest.json", mine / "manifest.json")
    shutil.copyfile(next(theirs.rglob("model.plan")), next(mine.rglob("model.plan")))

    verdict = judged(registry, version, gates.Integrity())

    assert verdict.status == "failed"
    assert "mlflow_trt.digest" in verdict.reasons[0]


def test_a_version_registered_without_tags_is_known_by_its_logged_model(registry, versions):
    source = registry.client.get_model_version(registry.name, versions[0]).source
    made = registry.client.create_model_version(registry.name, source, model_id=source.removeprefix("models:/"))

    assert judged(registry, made.version, gates.Integrity()).status == "passed"


# ---- compatibility -------------------------------------------------------------------------------------------------


def test_every_named_machine_has_to_load_it(registry, versions, tmp_path):
    (tmp_path / "fleet.yaml").write_text(
        f"edge: {forged.HERE}\nold:\n  capability: 7.5\n  runtimes: {{tensorrt_rtx: {forged.RELEASE}}}\n"
    )

    passed = judged(registry, versions[0], gates.Compatibility([forged.HERE, Host(**_host("8.6"))]))
    failed = judged(registry, versions[0], gates.Compatibility([forged.HERE], fleet=tmp_path / "fleet.yaml"))

    assert passed.status == "passed"
    assert failed.status == "failed"
    assert [row[:2] for row in failed.tables[0].rows] == [
        (forged.HERE, "loads"),
        ("edge", "loads"),
        ("old", "DOES NOT LOAD"),
    ]
    [reason] = failed.reasons
    assert reason.startswith("old: The GPU has compute capability 7.5.")


def _host(capability):
    return {"capability": capability, "os": "linux", "runtimes": {"tensorrt_rtx": forged.RELEASE}}


def test_targets_join_the_default_gates():
    assert [g.name for g in gates.default(targets=[forged.HERE])] == [
        *("integrity", "compatibility", "contract", "parity", "latency")
    ]


# ---- contract ------------------------------------------------------------------------------------------------------


def test_a_smaller_maximum_batch_is_refused_and_a_larger_one_passes(registry):
    champion, smaller, larger = (registry.log(forged.plan(batch=(1, 2, n))) for n in (8, 4, 16))
    crown(registry, champion)

    refused = judged(registry, smaller, gates.Contract())

    assert refused.status == "failed"
    assert refused.reasons == ("Calls with x.shape[0] = 5 to 8 are accepted now and would be refused.",)
    assert judged(registry, larger, gates.Contract()).status == "passed"


def test_a_renamed_input_is_refused(registry):
    champion, renamed = registry.log(forged.plan()), registry.log(forged.plan(input_name="image"))
    crown(registry, champion)

    verdict = judged(registry, renamed, gates.Contract())

    assert verdict.status == "failed"
    assert "'x' is gone" in verdict.reasons[0]


def test_another_number_of_classes_is_refused_and_what_was_compared_is_in_the_report(registry):
    champion = registry.log(forged.plan())
    made = forged.plan("more classes")
    interface = made.manifest.interface
    outputs = (interface.outputs[0].model_copy(update={"shape": ("batch", 4)}),)
    wider = dataclasses.replace(
        made,
        manifest=made.manifest.model_copy(
            update={"interface": interface.model_copy(update={"outputs": outputs})},
        ),
    )
    crown(registry, champion)

    verdict = judged(registry, registry.log(wider), gates.Contract())

    assert verdict.status == "failed"
    assert verdict.reasons == ("The output 'scores' has the size 4 in dimension 1, and had 3.",)
    assert ("output scores", "float32 (batch, 3)", "float32 (batch, 4)") in verdict.tables[0].rows


# ---- latency, with engines that PyTorch runs -----------------------------------------------------------------------


def module(width, depth=1):
    import torch

    torch.manual_seed(0)
    layers = [
        torch.nn.Linear(4, width),
        *(torch.nn.Linear(width, width) for _ in range(depth)),
        torch.nn.Linear(width, 3),
    ]
    return torch.nn.Sequential(*layers)


def test_a_slower_engine_is_refused_and_the_same_again_passes(registry):
    pytest.importorskip("torch")
    quick = registry.log(forged.plan("quick", module=module(8)))
    slow = registry.log(forged.plan("slow", module=module(512, depth=12)))
    crown(registry, quick)
    # Much slower, and time enough: other tests want the same cores. It ends as soon as it is decided.
    gate = gates.Latency(max_ratio=1.5, max_ratio_p99=20.0, seconds=15.0, backend="reference")

    refused, passed = judged(registry, slow, gate), judged(registry, registry.again(quick), gate)

    assert refused.status == "failed", refused.reasons
    assert refused.figures["comparisons"][0]["ratio"] > 1.5
    assert "the logged programs on the CPU" in refused.tables[0].title
    assert passed.status == "passed", passed.reasons


def test_without_a_champion_there_is_nothing_to_be_slower_than(registry, versions):
    assert judged(registry, versions[0], gates.Latency()).status == "passed"


def test_without_a_gpu_latency_is_not_measured(registry, versions):
    crown(registry, versions[0])

    verdict = judged(registry, versions[1], gates.Latency())

    assert verdict.status == "not_measured"
    assert verdict.blocks
    assert "no GPU" in verdict.reasons[0]
