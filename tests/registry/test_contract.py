"""Whether what clients send to one version is accepted by another: pure, with manifests made by hand."""

from __future__ import annotations

import forged
import pytest

from mlflow_trt.manifest import ShapeRange
from mlflow_trt.registry import contract

X = ("x", "float32", ("batch", 3, "height"))
MASK = ("mask", "bool", ("batch",))


def manifest(inputs=(X, MASK), outputs=(("scores", "float32", ("batch", 10)),), profiles=None):
    """``profiles``: by input the (min, max) of each dimension."""
    base = forged.plan().manifest
    interface = base.interface.model_copy(
        update={
            "inputs": tuple(forged.tensor(*t) for t in inputs),
            "outputs": tuple(forged.tensor(*t) for t in outputs),
        }
    )
    profiles = profiles or [{"x": [(1, 8), (3, 3), (32, 64)], "mask": [(1, 8)]}]
    made = tuple(
        {
            name: ShapeRange(min=[lo for lo, _ in d], opt=[lo for lo, _ in d], max=[hi for _, hi in d])
            for name, d in p.items()
        }
        for p in profiles
    )
    record = base.plans[0].model_copy(update={"profiles": made})
    return base.model_copy(update={"interface": interface, "plans": (record,)})


def batches(*ranges, height=(32, 64)):
    return [{"x": [r, (3, 3), height], "mask": [r]} for r in ranges]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (batches((1, 8)), batches((1, 8))),
        (batches((2, 8)), batches((1, 16))),
        (batches((1, 8)), batches((1, 1), (2, 8))),
        (batches((1, 1), (2, 8)), batches((1, 8))),
        (batches((1, 3), (5, 8)), batches((1, 4), (5, 9))),
        (batches((1, 8)), batches((1, 5), (3, 8))),
    ],
)
def test_ranges_that_do_not_shrink_are_accepted(old, new):
    assert contract.problems(manifest(profiles=old), manifest(profiles=new)) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (batches((1, 8)), batches((1, 4)), r"x.shape\[0\] = 5 to 8"),
        (batches((1, 8)), batches((2, 8)), r"x.shape\[0\] = 1 are"),
        (batches((1, 8)), batches((1, 3), (5, 8)), r"x.shape\[0\] = 4 are"),
        (batches((1, 8)), batches((1, 8), height=(48, 64)), r"x.shape\[2\] = 32 to 47"),
        (
            batches((1, 8)),
            [*batches((1, 8), height=(32, 40)), *batches((1, 4), height=(41, 64))],
            r"= 5 to 8.*41 to 64",
        ),
    ],
)
def test_ranges_that_shrink_name_the_calls_that_would_fail(old, new, message):
    import re

    [problem] = contract.problems(manifest(profiles=old), manifest(profiles=new))

    assert re.search(message, problem)


def test_sizes_that_are_always_equal_need_not_be_covered_apart():
    """Two profiles make two squares; what lies between them no client can send, for the batch is one size."""
    old = manifest(profiles=batches((1, 8)))
    new = manifest(profiles=batches((1, 4), (5, 8)))

    assert contract.problems(old, new) == []


def test_sizes_that_become_tied_are_a_problem():
    free = (("a", "float32", ("n",)), ("b", "float32", ("m",)))
    tied = (("a", "float32", ("k",)), ("b", "float32", ("k",)))
    ranges = [{"a": [(1, 4)], "b": [(1, 4)]}]

    [problem] = contract.problems(manifest(free, profiles=ranges), manifest(tied, profiles=ranges))

    assert "would have to be equal" in problem
    assert contract.problems(manifest(tied, profiles=ranges), manifest(free, profiles=ranges)) == []


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ((X,), None, "'mask' is gone"),
        ((X, MASK, ("more", "float32", (1,))), None, "'more' is new"),
        ((X, ("mask", "int64", ("batch",))), None, "is int64, and was bool"),
        ((("x", "float32", ("batch", 3)), MASK), None, "has rank 2, and had 3"),
        (None, (("other", "float32", ("batch", 10)),), "output 'scores' is gone"),
        (None, (("scores", "float16", ("batch", 10)),), "is float16"),
        (None, (("scores", "float32", ("batch",)),), "has rank 1"),
    ],
)
def test_names_dtypes_and_ranks_are_kept(inputs, outputs, message):
    old = manifest()
    new = manifest(*(() if inputs is None else (inputs,)), **({"outputs": outputs} if outputs else {}))

    assert any(message in problem for problem in contract.problems(old, new))


def test_a_new_output_is_a_note_and_no_problem():
    more = (("scores", "float32", ("batch", 10)), ("embedding", "float32", ("batch", 64)))

    assert contract.problems(manifest(), manifest(outputs=more)) == []
    assert contract.notes(manifest(), manifest(outputs=more)) == ["There are new outputs: embedding."]


def test_inputs_in_another_order_break_native_calls():
    old, new = manifest(), manifest()
    arguments = new.interface.arguments
    turned = arguments.model_copy(update={"items": tuple(reversed(arguments.items))})
    new = new.model_copy(update={"interface": new.interface.model_copy(update={"arguments": turned})})

    assert "another order" in contract.problems(old, new)[0]


def test_every_plan_of_the_new_version_has_to_keep_the_contract():
    wide, narrow = manifest(profiles=batches((1, 8))), manifest(profiles=batches((1, 4)))
    both = wide.model_copy(update={"plans": wide.plans + narrow.plans})

    assert contract.problems(wide, both)
    assert contract.problems(both, wide) == []


def test_an_engine_from_elsewhere_has_no_contract_on_record():
    known = manifest()

    assert contract.unknown(known) is None
    assert contract.unknown(known.model_copy(update={"interface": None}))
    plans = (known.plans[0].model_copy(update={"profiles": None}),)
    assert contract.unknown(known.model_copy(update={"plans": plans}))
