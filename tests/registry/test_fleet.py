"""Fleets and upgrades: which machines load what, by manifests alone."""

from __future__ import annotations

import forged
import pytest

import mlflow_trt
from mlflow_trt import SettingError, cache
from mlflow_trt.plan.manifest import Host
from mlflow_trt.registry import fleet

OLD = f"tensorrt_rtx=={forged.RELEASE},sm_75"


@pytest.fixture
def folder(tmp_path):
    from mlflow_trt import plan

    (tmp_path / "model").mkdir()
    plan.write([forged.plan()], tmp_path / "model")
    return tmp_path / "model"


def test_a_fleet_is_checked_by_the_manifest_alone(folder):
    next(folder.rglob("model.plan")).unlink()

    reports = mlflow_trt.check_fleet(folder, {"edge": forged.HERE, "old": OLD})

    assert reports["edge"].accepted is not None
    assert reports["old"].accepted is None
    assert "7.5" in fleet.why_not(reports["old"])


def test_a_fleet_file_names_machines_by_text_or_by_fields(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(
        """
edge: tensorrt_rtx==1.6.1.120,sm_89,os=linux
h100:
  gpu: NVIDIA H100
  capability: 9.0
  runtimes: {tensorrt_rtx: 1.7}
turing: {capability: sm_75}
"""
    )

    assert fleet.read(path) == {
        "edge": Host(capability="8.9", os="linux", runtimes={"tensorrt_rtx": "1.6.1.120"}),
        "h100": Host(gpu="NVIDIA H100", capability="9.0", runtimes={"tensorrt_rtx": "1.7"}),
        "turing": Host(capability="7.5"),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        ("", "names no machine"),
        ("- a\n- b\n", "names no machine"),
        ("a: [", "can't be read"),
        ("a: 3", "'a'"),
        ("a: {capacity: 8.9}", "no field capacity"),
        ("a: sm_eighty", "sm_eighty"),
    ],
)
def test_a_fleet_file_that_is_none_says_so(tmp_path, content, message):
    if content is not None:
        (tmp_path / "fleet.yaml").write_text(content)

    with pytest.raises(SettingError, match=message):
        fleet.read(tmp_path / "fleet.yaml")


def manifest_of(*plans):
    first = plans[0].manifest
    return first.model_copy(update={"plans": tuple(p.manifest.plans[0] for p in plans)})


@pytest.mark.parametrize(
    ("plans", "release", "expected"),
    [
        ([{}], "1.7", "breaks"),
        ([{}], "1.6.1.120", "loads"),
        ([{}], "1.6", "loads"),
        ([{}, {"release": "1.7.0.23"}], "1.7", "loads"),
        ([{}, {"release": "1.7.0.23"}], "1.7.0.23", "loads"),
        ([{}, {"release": "1.7.0.23"}], "1.7.1.5", "breaks"),
        ([{"release": "1.7.0.23"}], "1.7", "mended"),
        ([{"capabilities": ("7.5",)}], "1.7", "loads nowhere"),
    ],
)
def test_what_an_upgrade_does_to_a_version_on_a_machine(plans, release, expected):
    host = Host(capability="8.9", os="linux", runtimes={"tensorrt_rtx": forged.RELEASE})

    verdict, reason = fleet.judge_upgrade(
        manifest_of(*(forged.plan(**p) for p in plans)), host, "tensorrt_rtx", release
    )

    assert verdict == expected
    assert reason


def test_an_upgrade_is_checked_over_all_registered_models(registry, versions, tmp_path):
    """Of each model what an alias names, or else the newest; nothing but manifests is fetched."""
    import mlflow

    mlflow_trt.promote(registry.name, versions[0], gates=[])
    ready = f"{registry.name}-ready"
    registry.log([forged.plan(), forged.plan("next", release="1.7.0.23")], ready)
    other = f"{registry.name}-other"

    class Other(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: list[str]):
            return model_input

    mlflow.pyfunc.log_model(name="other", python_model=Other(), registered_model_name=other)
    for path in (cache.folder() / "models").rglob("*"):
        if path.is_file():
            path.unlink()

    changes = mlflow_trt.check_upgrade("tensorrt_rtx==1.7", names=[registry.name, ready, other])

    machine = [f"tensorrt_rtx=={forged.RELEASE},sm_86", f"tensorrt_rtx=={forged.RELEASE},sm_89"]
    found = [(c.name, c.version, c.aliases, c.host, c.verdict) for c in changes]
    assert found[:2] == [(registry.name, versions[0], ("champion",), m, "breaks") for m in machine]
    assert {f[4] for f in found if f[0] == ready} == {"loads"}
    assert [f[4] for f in found if f[0] == other] == ["other flavor"]
    assert {p.name for p in (cache.folder() / "models").rglob("*") if p.is_file()} == {"manifest.json"}
    everything = mlflow_trt.check_upgrade("tensorrt_rtx==1.7")
    assert {registry.name, ready, other} <= {c.name for c in everything}


def test_an_upgrade_of_a_fleet_names_its_machines(registry, versions):
    mlflow_trt.promote(registry.name, versions[0], gates=[])
    machines = {"edge": forged.HERE, "old": OLD, "other runtime": "tensorrt==11.1.0.23,sm_89"}

    changes = mlflow_trt.check_upgrade("tensorrt_rtx==1.7", names=[registry.name], fleet=machines)

    assert [(c.host, c.verdict) for c in changes] == [("edge", "breaks"), ("old", "loads nowhere")]
    assert [c.broken for c in changes] == [True, False]


@pytest.mark.parametrize("upgrade", ["sm_89", "tensorrt_rtx==1.7,tensorrt==11.1.0.23", "rtx"])
def test_an_upgrade_has_to_name_one_runtime(upgrade):
    with pytest.raises(SettingError):
        mlflow_trt.check_upgrade(upgrade)
