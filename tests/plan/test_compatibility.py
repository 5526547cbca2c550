from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import host, manifest, record

from mlflow_trt.errors import CompatibilityError, SettingError
from mlflow_trt.plan.compatibility import check, check_all, describe, runtime_for, select
from mlflow_trt.plan.host import parse_host
from mlflow_trt.plan.manifest import File, Host, Program

FULL = {"runtime": "tensorrt", "release": "10.15.1.29", "capabilities": ("9.0",)}
H100 = {"gpu": "NVIDIA H100", "capability": "9.0"}


def on(**changes):
    return host(**{"runtimes": {"tensorrt_rtx": "1.6.1.120", "tensorrt": "10.15.1.29"}, **changes})


def lean(release):
    return on(**H100, runtimes={"tensorrt_lean": release})


ACCEPTED = {
    "rtx, built for it": (record(), on()),
    "rtx, windows": (record(built_on=host()), on(os="windows")),
    "rtx, capability not on record": (record(capabilities=None), on(**H100)),
    "rtx, built on an H100": (record(capabilities=("9.0",)), on(**H100)),
    "rtx, built for 8.x, on an H100": (record(capabilities=("8.0", "8.6")), on(**H100)),
    "rtx, built for all, on a B200": (record(capabilities=("7.5", "8.0", "8.9", "12.0")), on(capability="10.0")),
    "full, same": (record(**FULL, built_on=on(**H100)), on(**H100)),
    "full, hardware compatible": (record(**FULL, hardware_compatible=True), on()),
    "full, later release, version compatible": (
        record(**{**FULL, "release": "10.15.0.1"}, version_compatible=True),
        on(**H100),
    ),
    "full, builder not on record": (record(**FULL), on(**H100, os="windows")),
    "lean, same release": (record(**FULL, version_compatible=True), lean("10.15.1.29")),
    "lean, later release": (record(**FULL, version_compatible=True), lean("11.4.0.106")),
    "lean, release in short": (record(**FULL, version_compatible=True), lean("10.15")),
    "lean, beside an older full one": (
        record(**FULL, version_compatible=True),
        on(**H100, runtimes={"tensorrt": "10.14.1.48", "tensorrt_lean": "10.15.1.29"}),
    ),
    "full, beside an older lean one": (
        record(**FULL),
        on(**H100, runtimes={"tensorrt": "10.15.1.29", "tensorrt_lean": "10.14.1.48"}),
    ),
}

REJECTED = {
    "rtx, other release": (record(release="1.4.0.76"), on(), "1.6.1.120 is installed"),
    "rtx, other build of the release": (record(release="1.6.1.119"), on(), "exactly|1.6.1.119"),
    "rtx, later release": (record(version_compatible=True, release="1.5.0.1"), on(), "1.5.0.1"),
    "rtx, not installed": (record(), on(runtimes={"tensorrt": "10.15.1.29"}), "not installed"),
    "rtx, nothing installed": (record(), on(runtimes={}), "not installed"),
    "rtx, named capability not built for": (record(capabilities=("8.6",)), on(capability="8.9"), "8.9"),
    "rtx, older GPU": (record(capabilities=("8.9", "12.0")), on(capability="8.6"), "8.6"),
    "rtx, built for later GPUs, on an H100": (record(capabilities=("12.0",)), on(**H100), "9.0"),
    "rtx, built for Turing alone, on an H100": (record(capabilities=("7.5",)), on(**H100), "9.0"),
    "rtx 1.7, built for 8.x, on an H100": (
        record(release="1.7.1.116", capabilities=("8.0", "8.6")),
        on(**H100, runtimes={"tensorrt_rtx": "1.7.1.116"}),
        "TensorRT-RTX 1.7.1.116 does not run on|newer than 12.1",
    ),
    "rtx, built on an H100, elsewhere": (record(capabilities=("9.0",)), on(), "8.9"),
    "rtx, built on an H100, on a B200": (record(capabilities=("9.0",)), on(capability="10.0"), "10.0"),
    "rtx, mac": (record(), on(os="darwin"), "darwin"),
    "no GPU": (record(), on(gpu=None, capability=None), "No NVIDIA GPU"),
    "full, other GPU": (record(**FULL), on(), "8.9"),
    "full, hardware compatible, Turing": (record(**FULL, hardware_compatible=True), on(capability="7.5"), "7.5"),
    "full, other release": (record(**{**FULL, "release": "10.15.1.30"}), on(**H100), "10.15.1.29"),
    "full, earlier release": (record(**{**FULL, "release": "11.0.0.1"}, version_compatible=True), on(**H100), "later"),
    "lean, not version compatible": (record(**FULL), lean("10.15.1.29"), "loads version-compatible plans alone"),
    "lean, earlier release": (record(**FULL, version_compatible=True), lean("10.14.1.48"), "built by the later"),
    "lean, rtx": (record(version_compatible=True), lean("10.15.1.29"), "tensorrt_rtx is not installed (tensorrt_lean"),
    "lean, other GPU": (record(**FULL, version_compatible=True), on(runtimes={"tensorrt_lean": "10.15.1.29"}), "8.9"),
    "full, other system": (record(**FULL, built_on=on(**H100)), on(**H100, os="windows"), "windows"),
    "full, other processor": (record(**FULL, built_on=on(**H100)), on(**H100, machine="aarch64"), "aarch64"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case):
    plan, here = ACCEPTED[case]
    verdict = check(plan, here)
    assert verdict.accepted, verdict
    assert verdict.to_dict()["reasons"] == []


@pytest.mark.parametrize("case", REJECTED)
def test_rejected(case):
    plan, here, said = REJECTED[case]
    verdict = check(plan, here)
    assert not verdict.accepted
    assert any(word in " ".join((r.found, r.expected)) for r in verdict.reasons for word in said.split("|")), verdict
    assert all(r.found and r.expected and r.remedy for r in verdict.reasons)


@pytest.mark.parametrize(
    "case",
    [
        "rtx, capability not on record",
        "rtx, built for 8.x, on an H100",
        "full, builder not on record",
        "full, later release, version compatible",
        "lean, later release",
    ],
)
def test_what_is_not_certain_is_noted(case):
    assert check(*ACCEPTED[case]).notes


def test_which_installed_runtime_loads_a_plan():
    loads = {case: runtime_for(*ACCEPTED[case]) for case in ACCEPTED}
    assert {name for case, name in loads.items() if case.startswith("lean")} == {"tensorrt_lean"}
    assert {name for case, name in loads.items() if case.startswith("full")} == {"tensorrt"}
    assert {name for case, name in loads.items() if case.startswith("rtx")} == {"tensorrt_rtx"}
    assert runtime_for(record(**FULL), lean("10.15.1.29")) is None


def test_a_lean_runtime_is_told_of_and_offered():
    made = record(**FULL, version_compatible=True, built_on=on(**H100))
    (note,) = check(made, lean("10.15.1.29")).notes
    assert "tensorrt_lean 10.15.1.29" in note
    (reason,) = check(made, on(**H100, runtimes={})).reasons
    assert "tensorrt_lean" in reason.expected
    assert "pip install tensorrt-lean-cu13-bindings==10.15.1.29 tensorrt-lean-cu13-libs==10.15.1.29" in reason.remedy
    (reason,) = check(record(**FULL), on(**H100, runtimes={})).reasons
    assert "lean" not in reason.expected + reason.remedy
    (reason,) = check(record(**FULL), lean("11.4.0.106")).reasons
    assert "version_compatible=True" in reason.remedy


def test_both_runtimes_say_why_not():
    installed = {"tensorrt": "10.14.1.48", "tensorrt_lean": "10.14.1.48"}
    reasons = check(record(**FULL, version_compatible=True), on(**H100, runtimes=installed)).reasons
    assert [r.found.split(" ")[0] for r in reasons] == ["tensorrt", "tensorrt_lean"]


def test_all_reasons_are_given():
    verdict = check(record(release="1.4.0.76", capabilities=("8.6",)), on(os="darwin"))
    assert len(verdict.reasons) == 3


def test_the_first_accepted_plan_is_chosen():
    plans = [
        record(release="1.4.0.76"),
        record(capabilities=("8.6",)),
        record(capabilities=("8.9",)),
        record(capabilities=("8.6", "8.9")),
    ]
    report = check_all(manifest(*plans), on())
    assert report.accepted is plans[2]
    assert [r for r, _ in report.passed_over()] == plans[:2]
    assert select(manifest(*plans), on()).record is plans[2]
    text = report.explain()
    assert "sm89, loads" in text
    assert "would load too" in text
    assert "1.4.0.76-sm86-sm89, does not load" in text


def test_refusal_prints_the_whole_trace():
    plans = [record(release="1.4.0.76"), record(**FULL)]
    with pytest.raises(CompatibilityError) as caught:
        select(manifest(*plans), on())
    text = str(caught.value)
    assert "NVIDIA L4 (compute capability 8.9), driver 580.95.05" in text
    assert "tensorrt_rtx-1.4.0.76-sm86-sm89, does not load" in text
    assert "tensorrt-10.15.1.29-sm90, does not load" in text
    assert "pip install tensorrt_rtx==1.4.0.76" in text
    assert "reference" not in text


def test_refusal_names_the_reference_backend_where_there_is_a_program():
    program = Program(file=File(path="program/model.pt2", size=1, sha256="0" * 64), torch="2.14.1")
    with pytest.raises(CompatibilityError, match='backend="reference"'):
        select(manifest(program=program), on(gpu=None, capability=None))


def test_report_is_json():
    report = check_all(manifest(record(), record(release="1.4.0.76"), record(capabilities=None)), on())
    read = json.loads(json.dumps(report.to_dict()))
    assert read["accepted"] == "tensorrt_rtx-1.6.1.120-sm86-sm89"
    assert [p["accepted"] for p in read["plans"]] == [True, False, True]
    assert read["host"]["capability"] == "8.9"


def test_a_bare_host_is_described():
    assert describe(Host()) == "no GPU, no TensorRT runtime"


def test_parse_host():
    assert parse_host("tensorrt_rtx==1.6.1.120,sm_89") == Host(capability="8.9", runtimes={"tensorrt_rtx": "1.6.1.120"})
    assert parse_host(" tensorrt-rtx==1.4.0.76 , 12.0, os=Linux, machine=x86_64 ,tensorrt==10.15.1.29") == Host(
        capability="12.0",
        os="linux",
        machine="x86_64",
        runtimes={"tensorrt_rtx": "1.4.0.76", "tensorrt": "10.15.1.29"},
    )
    assert parse_host("sm_120").capability == "12.0"
    for text in ("tensorrt_lean==11.4,sm_89", "8.9,tensorrt-lean==11.4"):
        assert parse_host(text) == Host(capability="8.9", runtimes={"tensorrt_lean": "11.4"})
    assert parse_host("sm75,gpu=NVIDIA T4,driver=580.1,cuda=13.0").gpu == "NVIDIA T4"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "sm_",
        "tensorrt_rtx",
        "tensorrt_rtx=1.6",
        "tensorrt_dispatch==11.4",
        "onnx==1.0",
        "sm_89,8.6",
        "8.9,",
        "os=",
    ],
)
def test_parse_host_refuses_nonsense(text):
    with pytest.raises(SettingError, match="host"):
        parse_host(text)


CAPABILITIES = st.sampled_from(["7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "12.0", "12.1"])
PLANS = st.builds(
    lambda runtime, release, capabilities, hardware, version: record(
        runtime=runtime,
        release=release,
        capabilities=capabilities,
        hardware_compatible=hardware,
        version_compatible=version,
    ),
    st.sampled_from(["tensorrt", "tensorrt_rtx"]),
    st.sampled_from(["1.4.0.76", "1.6.1.120", "10.15.1.29", "11.0.0.1"]),
    st.none() | st.lists(CAPABILITIES, min_size=1, max_size=3, unique=True).map(tuple),
    st.booleans(),
    st.booleans(),
)
HOSTS = st.builds(
    lambda capability, runtimes, system: host(capability=capability, runtimes=runtimes, os=system),
    st.none() | CAPABILITIES,
    st.dictionaries(
        st.sampled_from(["tensorrt", "tensorrt_rtx", "tensorrt_lean"]),
        st.sampled_from(["1.4.0.76", "1.6.1.120", "10.15.1.29"]),
    ),
    st.sampled_from([None, "linux", "windows", "darwin"]),
)


@given(PLANS, HOSTS)
def test_what_is_accepted_has_a_gpu_and_the_runtime(plan, here):
    verdict = check(plan, here)
    if verdict.accepted:
        assert here.capability
        loads = runtime_for(plan, here)
        assert loads in here.runtimes
        assert loads == plan.runtime or (loads == "tensorrt_lean" and plan.version_compatible)
        assert (loads == "tensorrt_rtx") == (plan.runtime == "tensorrt_rtx")
        if plan.runtime == "tensorrt_rtx":
            assert here.runtimes["tensorrt_rtx"] == plan.release
            assert here.os != "darwin"
    else:
        assert verdict.reasons


@given(PLANS, HOSTS)
def test_a_plan_for_exactly_this_host_is_never_refused(plan, here):
    if here.capability is None or here.os == "darwin":
        return
    exact = plan.model_copy(update={"capabilities": (here.capability,), "built_on": here})
    fitting = here.model_copy(update={"runtimes": {plan.runtime: plan.release}})
    assert check(exact, fitting).accepted


@given(st.lists(PLANS, min_size=1, max_size=5), HOSTS)
def test_choosing_agrees_with_checking(plans, here):
    accepted = [p for p in plans if check(p, here).accepted]
    if accepted:
        assert select(manifest(*plans), here).record is accepted[0]
    else:
        with pytest.raises(CompatibilityError):
            select(manifest(*plans), here)
