"""Whether what clients send to one version is accepted by another: pure, with manifests made by hand."""

from __future__ import annotations

import forged
import pytest
from interfaces import branch, tensor

from mlflow_trt.plan.manifest import ConstantLeaf, ShapeRange, TensorLeaf
from mlflow_trt.registry import contract

X = ("x", "float32", ("batch", 3, "height"))
MASK = ("mask", "bool", ("batch",))


def manifest(inputs=(X, MASK), outputs=(("scores", "float32", ("batch", 10)),), profiles=None):
    """``profiles``: by input the (min, max) of each dimension."""
    base = forged.plan().manifest
    interface = base.interface.model_copy(
        update={
            "inputs": tuple(tensor(name, shape, dtype) for name, dtype, shape in inputs),
            "outputs": tuple(tensor(name, shape, dtype) for name, dtype, shape in outputs),
        }
    )
    if profiles is None:
        profiles = [{"x": [(1, 8), (3, 3), (32, 64)], "mask": [(1, 8)]}]
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


# ---- fixed sizes and relations -------------------------------------------------------------------------------------


def single(shape, outputs, *ranges):
    """One input ``x`` and outputs by name; one range for each profile: (min, max) of each dimension."""
    made = [("x", "float32", shape)]
    return manifest(made, tuple((n, "float32", s) for n, s in outputs.items()), [{"x": r} for r in ranges])


B4 = [(1, 8), (4, 4)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # Eight classes become nine, or as many as the batch.
        ((("batch", 4), {"y": ("batch", 8)}, B4), (("batch", 4), {"y": ("batch", 9)}, B4), "the size 9 .* and had 8"),
        ((("batch", 4), {"y": ("batch", 8)}, B4), (("batch", 4), {"y": ("batch", "batch")}, B4), "is batch, and was 8"),
        ((("batch", 4), {"y": ("batch", 8)}, B4), (("batch", 4), {"y": ("batch", "u0")}, B4), "depends on the data"),
        ((("batch", 4), {"y": ("batch", 8)}, B4), (("batch", 4), {"y": (8, 8)}, B4), "is 8, and was batch"),
        ((("batch", 4), {"y": ("2*batch",)}, B4), (("batch", 4), {"y": ("batch",)}, B4), r"is batch, and was 2\*batch"),
        ((("b", "n"), {"y": ("b", "n")}, B4), (("b", "n"), {"y": ("n", "b")}, B4), "dimension 0 is n, and was b"),
        ((("b", 4), {"y": ("b//2",)}, B4), (("b", 4), {"y": ("(b + 1)//2",)}, B4), "is .b . 1.//2, and was b//2"),
        ((("b", 4), {"y": ("u0",)}, B4), (("b", 4), {"y": (100,)}, B4), "is 100, and depended on the data"),
        ((("b", 4), {"y": ("u0",)}, B4), (("b", 4), {"y": ("b",)}, B4), "is b, and depended on the data"),
        (
            (("b", 4), {"y": ("u0", 4), "z": ("u0",)}, B4),
            (("b", 4), {"y": ("u0", 4), "z": ("u1",)}, B4),
            "'z' in dimension 0 .* which it has no more",
        ),
        (
            (("b", 4), {"y": ("u0",), "z": ("2*u0",)}, B4),
            (("b", 4), {"y": ("u0",), "z": ("3*u0",)}, B4),
            "'z' in dimension 0",
        ),
        # Inputs.
        (
            (("batch", 4), {"y": ("batch",)}, B4),
            (("batch", 5), {"y": ("batch",)}, [(1, 8), (5, 5)]),
            "input 'x' has the size 5 in dimension 1, and had 4",
        ),
        (
            (("batch", 4), {"y": (8,)}, B4),
            ((8, 4), {"y": (8,)}, [(8, 8), (4, 4)]),
            r"x.shape\[0\] = 1 to 7 are accepted now",
        ),
        # A profile that says nothing of the input: the interface's sizes alone.
        ((("batch", 4), {"y": (8,)}), (("batch", 4), {"y": (8,)}, B4), r"x.shape\[0\] = 9 or more"),
        ((("n", 4), {"y": (1,)}, B4), (("2*s0", 4), {"y": (1,)}, B4), r"x.shape\[0\] would have to be 2\*s0"),
        ((("b", "n"), {"y": (1,)}, B4), (("b", "2*b"), {"y": (1,)}, B4), r"x.shape\[1\] would have to be 2\*b"),
    ],
)
def test_sizes_that_clients_rely_on_are_kept(old, new, message):
    import re

    [problem, *_] = contract.problems(single(*old), single(*new))

    assert re.search(message, problem)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Another name, or another spelling of the same.
        ((("s0", 4), {"y": ("s0", "2*s0")}, B4), (("batch", 4), {"y": ("batch", "batch + batch")}, B4)),
        ((("b", "n"), {"y": ("b", "n")}, B4), (("n", "b"), {"y": ("n", "b")}, B4)),
        ((("s0", 4), {"y": ("(s0//2) + 1",)}, B4), (("b", 4), {"y": ("FloorDiv(b + 2, 2)",)}, B4)),
        ((("s0", 4), {"y": ("Max(4, s0)",)}, B4), (("b", 4), {"y": ("Max(b, 4)",)}, B4)),
        ((("s0", 4), {"y": ("sorcery(s0)",)}, B4), (("b", 4), {"y": ("sorcery(b)",)}, B4)),
        ((("2*s0", 4), {"y": ("s0",)}, B4), (("2*half", 4), {"y": ("half",)}, B4)),
        ((("lambda", 4), {"y": ("lambda",)}, B4), (("a name", 4), {"y": ("a name",)}, B4)),
        # What depends on the data, under another name, or with more that is equal.
        ((("b", 4), {"y": ("u0", 4)}, B4), (("b", 4), {"y": ("found", 4)}, B4)),
        ((("b", 4), {"y": ("u0",), "z": ("2*u0",)}, B4), (("b", 4), {"y": ("n",), "z": ("2*n",)}, B4)),
        ((("b", 4), {"y": ("u0",), "z": ("u1",)}, B4), (("b", 4), {"y": ("n",), "z": ("n",)}, B4)),
        # A version of one batch size becomes one of several: for the calls of today nothing changes.
        (((8, 4), {"y": (8, 3)}, [(8, 8), (4, 4)]), (("batch", 4), {"y": ("batch", 3)}, B4)),
        ((("b", 4), {"y": ("b",)}, [(8, 8), (4, 4)]), (("b", 4), {"y": (8,)}, [(8, 8), (4, 4)])),
        # Without profiles the interface alone holds.
        (((8, 4), {"y": (8, 3)}), (("batch", 4), {"y": ("batch", 3)})),
        # A range that several profiles make up.
        ((("b", 4), {"y": ("b",)}, B4), (("n", 4), {"y": ("n",)}, [(5, 9), (4, 4)], [(1, 5), (4, 4)])),
    ],
)
def test_what_changes_no_answer_is_accepted(old, new):
    assert contract.problems(single(*old), single(*new)) == []


def test_sizes_that_are_one_number_in_every_profile_may_become_tied():
    free = (("a", "float32", ("n",)), ("b", "float32", ("m",)))
    tied = (("a", "float32", ("k",)), ("b", "float32", ("k",)))
    ranges = [{"a": [(n, n)], "b": [(n, n)]} for n in (1, 4)]

    assert contract.problems(manifest(free, profiles=ranges), manifest(tied, profiles=ranges)) == []
    ranges[1]["b"] = [(5, 5)]
    assert "equal" in contract.problems(manifest(free, profiles=ranges), manifest(tied, profiles=ranges))[0]


def test_a_call_that_lies_in_the_union_of_profiles_is_accepted():
    old = [{"x": [(1, 8), (3, 3), (32, 64)], "mask": [(1, 8)]}]
    quarters = [batches(b, height=h)[0] for b in ((1, 4), (5, 8)) for h in ((32, 48), (49, 64))]

    assert contract.problems(manifest(profiles=old), manifest(profiles=quarters)) == []
    [problem] = contract.problems(manifest(profiles=old), manifest(profiles=quarters[:3]))
    assert "x.shape[0] = 5 to 8, x.shape[2] = 49 to 64" in problem


def answering(result, outputs=("a", "b")):
    made = manifest(outputs=tuple((name, "float32", ("batch",)) for name in outputs))
    return made.model_copy(update={"interface": made.interface.model_copy(update={"result": result})})


A, B, C = (TensorLeaf(name=name) for name in "abc")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (branch("tuple", A, B), branch("tuple", A, B), True),
        (branch("tuple", A, B), branch("list", A, B), False),
        (branch("tuple", A, B), branch("tuple", B, A), False),
        (branch("tuple", A, B), branch("tuple", A, B, A), False),
        (A, branch("tuple", A), False),
        (branch("dict", A, B, keys=("p", "q")), branch("dict", A, B, keys=("p", "q")), True),
        (branch("dict", A, B, keys=("p", "q")), branch("dict", A, B, keys=("p", "r")), False),
        (branch("dict", A, B, keys=("p", "q")), branch("dict", B, A, keys=("q", "p")), False),
        (branch("dict", A, keys=("p",)), branch("dict", A, B, keys=("p", "q")), True),
        (branch("dict", A, B, keys=("p", "q")), branch("dict", A, keys=("p",)), False),
        (
            branch("namedtuple", A, B, keys=("p", "q"), type_name="Old"),
            branch("namedtuple", A, B, keys=("p", "q"), type_name="New"),
            True,
        ),
        (branch("namedtuple", A, B, keys=("p", "q")), branch("namedtuple", A, B, keys=("p", "r")), False),
        (branch("namedtuple", A, B, keys=("p", "q")), branch("tuple", A, B), False),
        (branch("list", branch("dict", A, keys=("p",)), B), branch("list", branch("dict", B, keys=("p",)), B), False),
        (branch("list", A, ConstantLeaf(value=0.5)), branch("list", A, ConstantLeaf(value=0.7)), True),
        (branch("list", A, ConstantLeaf(value=8)), branch("list", A, ConstantLeaf(value=9)), False),
        (branch("list", A, ConstantLeaf(value=None)), branch("list", A, ConstantLeaf(value=0.7)), False),
    ],
)
def test_a_native_call_answers_in_the_same_structure(old, new, expected):
    found = contract.problems(answering(old), answering(new))

    assert (found == []) is expected
    assert all("Native calls" in problem for problem in found)


def test_outputs_stay_at_their_places():
    old, turned = answering(A), answering(A, ("b", "a"))
    before, behind = answering(A, ("c", "a", "b")), answering(A, ("a", "b", "c"))

    assert "another order" in contract.problems(old, turned)[0]
    assert "another order" in contract.problems(old, before)[0]
    assert contract.problems(old, behind) == []


def test_what_was_compared_is_listed():
    old = manifest()
    new = manifest(((("x"), "float32", ("n", 3, "height")), ("mask", "bool", ("n",))))

    rows = {what: (was, now) for what, was, now in contract.relied_on(old, new).rows}

    assert rows["input x"] == ("float32 (batch, 3, height)", "float32 (n, 3, height)")
    assert rows["equal sizes, x.shape[0]"] == ("x.shape[0] = mask.shape[0]",) * 2
    assert rows["accepted sizes, profile 0"][0] == "x (1, 3, 32) to (8, 3, 64), mask (1,) to (8,)"
    assert rows["output scores"][0] == "float32 (batch, 10)"
    assert rows["result of a native call"] == ("scores", "scores")
    assert rows["arguments of a native call"][0] == "((x,), {})"
