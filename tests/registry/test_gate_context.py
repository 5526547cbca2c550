"""How a gate is asked, and what its answer counts as."""

from __future__ import annotations

from mlflow_trt.plan import manifest
from mlflow_trt.registry.gate_context import GateContext, Subject, ask


def test_an_expected_error_in_a_gate_is_its_reason():
    def reads(context):
        return manifest.parse("no JSON")

    context = GateContext("champion", Subject("m", "1"), None)

    assert ask(reads, context).status == "failed"
    assert "not JSON" in ask(reads, context).reasons[0]
