"""The steps of a conversion before anything is built, and what PyTorch makes of their programs."""

from __future__ import annotations

import torch

from mlflow_trt.conversion import golden, interface
from mlflow_trt.conversion.arguments import parse
from mlflow_trt.conversion.precision import prepare
from mlflow_trt.conversion.program import export, flatten, placeholder_values, refuse_mutation
from mlflow_trt.conversion.shapes import check_shapes
from mlflow_trt.conversion.structure import computed_outputs


def prepared(model, inputs, dtype, kwargs=None):
    """A program and what it became."""
    given = parse(model, inputs, kwargs)
    program = model if isinstance(model, torch.export.ExportedProgram) else export(model, given)
    specs = flatten(program, given)
    values = placeholder_values(program)
    fed = {name: interface.fed_dtype(spec, values[name].dtype) for name, spec in specs.items()}
    return program, prepare(program, computed_outputs(program, None), dtype, fed)


def run(program, *inputs):
    with torch.no_grad():
        return program.module()(*inputs)


def dtypes_of(program, *names):
    return {
        node.meta["val"].dtype
        for node in program.graph.nodes
        if node.op == "call_function" and any(f"aten.{name}." in str(node.target) for name in names)
    }


def relative(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def exported(model, inputs, kwargs=None):
    """The first half of a conversion."""
    given = parse(model, inputs, kwargs)
    program = model if isinstance(model, torch.export.ExportedProgram) else export(model, given)
    specs = flatten(program, given)
    check_shapes(program, specs)
    refuse_mutation(program)
    return program, specs


def computed(model, inputs, given=None, kwargs=None, **options):
    """Golden tensors of a module, which its program is compared with."""
    arguments = parse(model, inputs, kwargs)
    program = export(model, arguments)
    specs = flatten(program, arguments)
    return golden.compute(program, specs, computed_outputs(program, None), given, module=model, **options)
