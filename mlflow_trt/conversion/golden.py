"""What PyTorch answers at every profile point: the inputs and outputs that engines are later compared with."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from .._torch import pytree
from ..errors import ConversionError, SettingError
from ..plan.files import BETWEEN, GoldenTensors
from ..plan.manifest import Dimension
from .agreement import Difference, differs, refuse, refuse_random, rounding
from .arguments import Spec
from .dimensions import refuse_unequal
from .original import call, undisturbed
from .points import Point, shapes_text
from .program import module_of, placeholder_values
from .roles import Role, roles
from .shapes import holds, requirements
from .sizes import points, probes
from .structure import Output, user_inputs
from .values import synthesize

_logger = logging.getLogger(__name__)

LIMIT = 256 << 20
"""Bytes that the golden tensors of one plan may take."""

Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Case:
    """Inputs that the model is asked with."""

    point: Point
    values: Values

    @property
    def prefix(self) -> str:
        return f"{self.point.profile}.{self.point.name}"

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values.values())


def compute(
    program: ExportedProgram,
    specs: Mapping[str, Spec],
    outputs: Sequence[Output],
    given: Sequence[Any] | None,
    limit: int = LIMIT,
    *,
    shapes: Mapping[str, Sequence[Dimension]] | None = None,
    module: torch.nn.Module | None = None,
) -> GoldenTensors:
    """Asks PyTorch at min, opt, max and between of every profile, and at the caller's own inputs.

    With a module it is the module that answers, and the program has to agree with it: at these points, and at sizes
    that are not kept (:func:`mlflow_trt.conversion.sizes.probes`). Guards of the export that turn out to change
    nothing are taken from the program.

    Args:
        program: The exported program, as it was before any cast.
        specs: Its inputs.
        outputs: Those that the engine computes.
        given: The caller's golden inputs; their values also fill the profile points.
        limit: Bytes in all; the smallest points are kept.
        shapes: The inputs' symbolic shapes: dimensions of one symbol must have one size in the caller's inputs too.
        module: What the program was exported from; None: the program was given.

    Raises:
        SettingError: Golden inputs don't fit the model.
        ConversionError: PyTorch itself fails at a point that the engine is to accept, the program answers otherwise
            than its module, or the answers are random.
    """
    own = [_by_name(program, specs, value, i) for i, value in enumerate(given or ())]
    for i, values in enumerate(own):
        refuse_unequal(shapes or {}, {name: value.shape for name, value in values.items()}, f"golden_inputs[{i}]")
    source = own[0] if own else {}
    required = requirements(program)
    kept = points(program, specs, required.values())
    tried = probes(program, specs, required.values(), kept)
    users = list(_user_cases(specs, own))
    oracle = _Oracle(program, outputs, module)
    with undisturbed(module) if module is not None else contextlib.nullcontext():
        known = roles(program, specs)
        filled = _fill(program, specs, source, known, [*kept, *tried])
        if known and not oracle.takes(filled[0]):
            # Values by role fit the tables that the program shows; 0 and 1 fit nearly every other.
            filled = _fill(program, specs, source, {}, [*kept, *tried])
        stored, unstored = [*filled[: len(kept)], *users], filled[len(kept) :]
        golden = oracle.answer(_within(stored, limit), limit)
        if module is None:
            oracle.refuse_beyond(required.values(), unstored)
        else:
            oracle.try_out(unstored)
            refuse(oracle.differences, [case.point for case in oracle.agreeing], specs)
            _drop_harmless(program, required, oracle.agreeing)
    return golden


class _Oracle:
    """Asks the module, where there is one, and the program."""

    def __init__(self, program: ExportedProgram, outputs: Sequence[Output], module: torch.nn.Module | None) -> None:
        self.program = program
        self.outputs = outputs
        self.names = {position: output.name for output in outputs for position in output.positions}
        self.module = module
        self.exported = module_of(program)
        self.rounding = rounding(program)
        tensors = (t for t in program.state_dict.values() if isinstance(t, torch.Tensor))
        self.device = next((t.device for t in tensors), torch.device("cpu"))
        self.agreeing: list[_Case] = []
        self.differences: list[Difference] = []
        self._last: tuple[_Case, list[Any] | Exception] | None = None

    def takes(self, case: _Case) -> bool:
        """Whether PyTorch answers these inputs at all."""
        return not isinstance(self._original(case), Exception)

    def answer(self, cases: Sequence[_Case], limit: int) -> GoldenTensors:
        """Asks at every point that is to be kept; those beyond the limit of bytes are compared and not kept."""
        inputs: dict[str, np.ndarray] = {}
        results: dict[str, np.ndarray] = {}
        size = 0
        for case in cases:
            answered = self._original(case)
            if isinstance(answered, Exception):
                if case.point.name == BETWEEN:
                    # Some models take multiples only. That they hold at min, opt and max is what the caller said.
                    _logger.info("PyTorch itself fails at %s: %s", shapes_text(case.point), _first_line(answered))
                    continue
                raise _fails(case, answered) from answered
            self._check(case, answered)
            arrays = {o.name: _array(answered[o.positions[0]]) for o in self.outputs}
            size += sum(a.nbytes for a in arrays.values()) + case.nbytes
            if size > limit and inputs:
                _logger.info("Golden tensors at %s are left out: they exceed %d MiB.", case.prefix, limit >> 20)
                continue
            inputs.update({f"{case.prefix}/{name}": _array(value) for name, value in case.values.items()})
            results.update({f"{case.prefix}/{name}": array for name, array in arrays.items()})
        return GoldenTensors(inputs, results)

    def try_out(self, cases: Sequence[_Case]) -> None:
        """Compares program and module at sizes that are not kept; those that the model itself refuses say nothing."""
        for case in cases:
            answered = self._original(case)
            if isinstance(answered, Exception):
                _logger.debug("The model refuses %s: %s", shapes_text(case.point), _first_line(answered))
                continue
            got = self._run(self.exported, case)
            if isinstance(got, Exception):
                # An engine fails there too; it doesn't answer wrongly.
                _logger.warning(
                    "The exported program fails at %s, where the model answers: the engine will not take all sizes of "
                    "its profile (%s).",
                    shapes_text(case.point),
                    _first_line(got),
                )
                continue
            self._compare(case, answered, got)

    def refuse_beyond(self, required: Iterable[str], cases: Sequence[_Case]) -> None:
        """Refuses a given program that answers at sizes that its own guards exclude: an engine has no guards.

        Raises:
            ConversionError: It does, within a profile.
        """
        for case in cases:
            sizes = case.point.shapes
            two = {name: tuple(max(2, n) for n in shape) for name, shape in sizes.items()}
            # A guard against one single size is torch.export's care for broadcasting.
            broken = [r for r in required if "!=" not in r and not holds(r, sizes) and not holds(r, two)]
            if broken and not isinstance(self._run(self.exported, case), Exception):
                raise ConversionError(
                    f"The program was exported for sizes with {broken[0]}, and the ranges hold others: "
                    f"{shapes_text(case.point)}. An engine would answer there by operations that are not meant for it.",
                    "ranges within what the program was exported for",
                    "narrow the ranges; or export with torch.export.Dim such that the sizes follow (2 * Dim('n')); or "
                    "pass the module itself, which is asked whether it makes a difference",
                )

    def _original(self, case: _Case) -> list[Any] | Exception:
        """What the module answers, or the program that stands for it; kept until the next case."""
        if self._last is None or self._last[0] is not case:
            self._last = case, self._run(self.module or self.exported, case)
        return self._last[1]

    def _check(self, case: _Case, answered: list[Any]) -> None:
        if self.module is None:
            if _draws(self.program) and not self.agreeing:
                self._refuse_random(self.exported, case, answered)
            self.agreeing.append(case)
            return
        got = self._run(self.exported, case)
        if isinstance(got, Exception):
            self.differences.append(Difference(case.point, f"fails: {_first_line(got)}"))
        else:
            self._compare(case, answered, got)

    def _compare(self, case: _Case, answered: list[Any], got: list[Any]) -> None:
        what = differs(answered, got, self.names, _array, self.rounding)
        if what is None:
            self.agreeing.append(case)
            return
        if not self.differences:
            assert self.module is not None
            self._refuse_random(self.module, case, answered)
        self.differences.append(Difference(case.point, what))

    def _refuse_random(self, module: torch.nn.Module, case: _Case, answered: list[Any]) -> None:
        again = self._run(module, case)
        if isinstance(again, list) and (what := differs(answered, again, self.names, _array, self.rounding)):
            refuse_random("model" if self.module is not None else "exported program", case.point, what)

    def _run(self, module: torch.nn.Module, case: _Case) -> list[Any] | Exception:
        args, kwargs = _arguments(self.program, case.values, self.device)
        with torch.no_grad(), _exact():
            try:
                answered = call(module, args, kwargs) if module is self.module else module(*args, **kwargs)
            except Exception as error:
                return error
        return pytree.tree_leaves(answered, is_leaf=lambda v: v is None)


def _draws(program: ExportedProgram) -> bool:
    """Whether a program may hold random operations; dropout and attention are marked so even where they draw none."""
    for node in program.graph.nodes:
        tags = getattr(node.target, "tags", ()) if node.op == "call_function" else ()
        if (
            torch.Tag.nondeterministic_seeded in tags
            and "drop" not in str(node.target)
            and "attention" not in str(node.target)
        ):
            return True
    return False


def _drop_harmless(program: ExportedProgram, required: Mapping[str, str], agreeing: Sequence[_Case]) -> None:
    """Takes out guards that were broken where module and program agree: they would only refuse right calls."""
    harmless = {
        guard for guard, text in required.items() if any(not holds(text, case.point.shapes) for case in agreeing)
    }
    guards = getattr(program, "_guards_code", None)
    if harmless and isinstance(guards, list):
        guards[:] = [guard for guard in guards if guard not in harmless]


def _fails(case: _Case, error: Exception) -> ConversionError:
    return ConversionError(
        f"PyTorch itself fails at {case.point.name} of profile {case.point.profile} ({shapes_text(case.point)}): "
        f"{type(error).__name__}: {str(error).strip()[:400]}",
        "a model that runs at every size that the engine is to accept",
        "correct the ranges, or give golden_inputs with values that the model accepts (indices, say)",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _fill(
    program: ExportedProgram,
    specs: Mapping[str, Spec],
    source: Values,
    known: Mapping[str, Role],
    wanted: Sequence[Point],
) -> list[_Case]:
    generator = torch.Generator().manual_seed(0)
    return [
        _Case(
            point,
            {
                name: synthesize(spec, point.shapes[name], generator, source.get(name), known.get(name))
                for name, spec in specs.items()
            },
        )
        for point in wanted
    ]


def _user_cases(specs: Mapping[str, Spec], own: Sequence[Values]) -> Iterator[_Case]:
    profiles = range(max((len(s.ranges) for s in specs.values()), default=1))
    for i, values in enumerate(own):
        fitting = [p for p in profiles if all(_admits(specs[n], p, v) for n, v in values.items())]
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        if not fitting:
            raise SettingError(
                f"golden_inputs[{i}] has the shapes {', '.join(f'{n} {list(s)}' for n, s in shapes.items())}.",
                "shapes within one optimization profile",
                "widen the profile, or leave these inputs out",
            )
        yield _Case(Point(fitting[0], f"user{i}", shapes), values)


def _admits(spec: Spec, profile: int, value: torch.Tensor) -> bool:
    r = spec.range(profile)
    return value.dim() == len(r.min) and all(lo <= n <= hi for lo, n, hi in zip(r.min, value.shape, r.max))


def _by_name(program: ExportedProgram, specs: Mapping[str, Spec], value: Any, index: int) -> Values:
    """One golden input as tensors by public name; given so, or as the model's own arguments."""
    if isinstance(value, Mapping) and set(value) == set(specs):
        return {name: _tensor(value[name], specs[name]) for name in specs}
    call = ((), dict(value)) if isinstance(value, Mapping) else (tuple(value) if _many(value) else (value,), {})
    flat = [leaf for leaf in pytree.tree_leaves(call) if leaf is not None and not isinstance(leaf, (str, bool, int))]
    if len(flat) != len(specs):
        raise SettingError(
            f"golden_inputs[{index}] holds {len(flat)} tensors.",
            f"{len(specs)}: {', '.join(specs)}",
            "give each as a dict by input name, or as the tuple of arguments that the model takes",
        )
    return {name: _tensor(leaf, spec) for (name, spec), leaf in zip(specs.items(), flat)}


def _many(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _tensor(value: Any, spec: Spec) -> torch.Tensor:
    tensor = value.detach().cpu() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    return tensor.to(spec.dtype or tensor.dtype).clone()


def _within(cases: Sequence[_Case], limit: int) -> list[_Case]:
    """Leaves out the largest points, those between first, until the inputs alone are within the limit."""
    order = sorted(cases, key=lambda case: (case.point.name == BETWEEN, case.nbytes))
    kept: list[_Case] = []
    size = 0
    for case in order:
        if size + case.nbytes > limit and kept:
            _logger.info("Golden inputs at %s are left out: they would exceed %d MiB.", case.prefix, limit >> 20)
            continue
        size += case.nbytes
        kept.append(case)
    return kept


def _arguments(
    program: ExportedProgram, values: Values, device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``(args, kwargs)`` as the model takes them: copies, in its own dtypes, on its device."""
    expected = placeholder_values(program)
    flat: list[Any] = []
    for arg in user_inputs(program):
        if isinstance(arg, TensorArgument):
            flat.append(values[arg.name].to(device, expected[arg.name].dtype, copy=True))
        else:
            flat.append(arg.value)
    in_spec = program.call_spec.in_spec
    args, kwargs = in_spec.unflatten(flat) if in_spec is not None else (tuple(flat), {})
    return tuple(args), dict(kwargs)


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """float32 means float32 on a GPU too."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    if value.dtype in (torch.bfloat16, torch.float64):
        value = value.float()
    return np.asarray(value.numpy(), order="C")  # np.ascontiguousarray would give a scalar a dimension
