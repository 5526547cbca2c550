"""Plans that went through every step of a conversion but the build, which takes seconds.

A real interface, real golden answers and a real program, behind bytes that only look like an engine: the reference
backend needs none.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import forged

from mlflow_trt.plan.files import Plan


def plan(model: Any, inputs: Any, kwargs: Any = None, *, golden_inputs: Any = None) -> Plan:
    """A plan of ``model`` for the reference backend; inputs as ``mlflow_trt.convert`` takes them."""
    from mlflow_trt.conversion import dimensions, golden, interface
    from mlflow_trt.conversion.arguments import parse
    from mlflow_trt.conversion.program import export, flatten, placeholder_values
    from mlflow_trt.conversion.shapes import check_shapes
    from mlflow_trt.conversion.structure import computed_outputs

    given = parse(model, inputs, kwargs)
    program = export(model, given)
    specs = flatten(program, given)
    check_shapes(program, specs)
    symbols = dimensions.symbols(program, specs)
    outputs = computed_outputs(program, None)
    values = placeholder_values(program)
    shapes = {name: symbols.shape(values[name]) for name in specs}
    answers = golden.compute(program, specs, outputs, golden_inputs, shapes=shapes)
    described = interface.describe(program, specs, outputs, interface.bindings(specs, outputs), (), symbols)
    made = forged.plan("described", golden=False)
    record = made.record.model_copy(update={"profiles": interface.profiles(specs)})
    manifest = made.manifest.model_copy(update={"interface": described, "plans": (record,)})
    return dataclasses.replace(made, manifest=manifest, golden=answers, program=program)
