"""A small exported program with its manifest, made by hand: what the reference backend runs."""

from __future__ import annotations

from interfaces import branch, interface, leaf, span, tensor
from manifests import manifest, record

from mlflow_trt.plan.files import PROGRAM, digest
from mlflow_trt.plan.manifest import ConstantLeaf, InputLeaf, Program


def save(folder, module, args, kwargs=None, *, dynamic_shapes=None):
    """Exports a module into a model's folder and describes the file."""
    import torch

    from mlflow_trt.plan.manifest import File

    exported = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes)
    path = folder / PROGRAM
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(exported, path)
    file = File(path=PROGRAM, size=path.stat().st_size, sha256=digest(path))
    return Program(file=file, torch=torch.__version__)


FACE = interface(
    [tensor("x", ("batch", 4)), tensor("d_b", ("batch", 3))],
    [tensor("y", ("batch", 3)), tensor("relu", ("batch", 3)), tensor("best", ("batch",), "int64")],
    arguments=branch(
        "tuple", branch("tuple", leaf("x")), branch("dict", branch("dict", leaf("d_b"), keys=("b",)), keys=("d",))
    ),
    result=branch(
        "dict",
        leaf("y"),
        branch("list", InputLeaf(name="x"), ConstantLeaf(value=None), leaf("relu"), leaf("y")),
        leaf("best"),
        keys=("y", "n", "best"),
    ),
)
PROFILES = ({"x": span((1, 4), (2, 4), (8, 4)), "d_b": span((1, 3), (2, 3), (8, 3))},)


def nested(folder):
    """Saves the program of :data:`FACE`; returns the manifest and the module."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear = torch.nn.Linear(4, 3)

        def forward(self, x, *, d):
            y = self.linear(x)
            return {"y": y, "n": [x, None, (y + d["b"]).relu(), y], "best": y.argmax(1)}

    module = Module().eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    program = save(
        folder,
        module,
        (torch.ones(2, 4),),
        {"d": {"b": torch.ones(2, 3)}},
        dynamic_shapes={"x": {0: batch}, "d": {"b": {0: batch}}},
    )
    return manifest(record(profiles=PROFILES), interface=FACE, program=program), module
