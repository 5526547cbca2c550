"""What a gate is given, and how it is asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Union

from .. import store
from ..errors import CompatibilityError, DeviceError, ManifestError, PromotionError, StoreError, TrtError
from ..model_uri import ModelUri
from ..plan.manifest import Manifest
from .verdicts import Verdict

if TYPE_CHECKING:
    from ..engine import Engine
    from ..plan.compatibility import SelectedPlan


@dataclass(frozen=True)
class Subject:
    """A version that is judged, or compared with."""

    name: str
    version: str
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the registered version and, below those, of its logged model."""
    model_id: str | None = None
    """The logged model behind it; copies of one version share it."""
    run_id: str | None = None
    model: store.StoredModel | None = None
    """None: it was logged by another flavor."""

    @property
    def uri(self) -> str:
        """``models:/name/3``."""
        return str(ModelUri(self.name, version=self.version))

    @property
    def manifest(self) -> Manifest:
        """What it is.

        Raises:
            ManifestError: It was logged by another flavor.
        """
        return self.stored.manifest

    @property
    def stored(self) -> store.StoredModel:
        """Where its files are.

        Raises:
            ManifestError: It was logged by another flavor.
        """
        if self.model is None:
            raise ManifestError(
                f"{self.uri} was logged by another flavor.",
                "a version that mlflow_trt.log_model wrote",
                "leave this gate out, or compare the two with a gate of your own",
            )
        return self.model

    def load(
        self,
        *,
        device: int = 0,
        backend: Literal["tensorrt", "reference"] = "tensorrt",
        selected: SelectedPlan | None = None,
    ) -> Engine:
        """Loads it, one context only: two versions share the GPU while they are compared."""
        from ..flavor.load import load_stored

        return load_stored(self.stored, device=device, backend=backend, max_contexts=1, selected=selected)


@dataclass(frozen=True)
class GateContext:
    """A version that shall take an alias, and the one that holds it."""

    alias: str
    candidate: Subject
    champion: Subject | None
    """None: nobody holds the alias."""
    dry_run: bool = False
    """Whether nothing may be written to MLflow."""


Answer = Union[Verdict, bool, str]
Gate = Callable[[GateContext], Answer]
"""Any function of a context. It answers a :class:`Verdict`, or True (passed), or False or a text (failed, for it)."""


def name_of(gate: Gate) -> str:
    """What a gate is called: its ``name``, or the function's own."""
    return str(getattr(gate, "name", None) or getattr(gate, "__name__", None) or type(gate).__name__)


def ask(gate: Gate, context: GateContext, allow_not_measured: Collection[str] = ()) -> Verdict:
    """Asks a gate.

    An engine that can't be loaded here, for want of a GPU or of a plan for it, is "not measured"; any other expected
    error of this package is the reason why the gate failed.

    Args:
        gate: A gate of this package or a function of the user's.
        context: What to judge.
        allow_not_measured: Names of gates that need not be measured.

    Raises:
        PromotionError: The gate itself is broken: it raised something else, or answered something else.
        StoreError: MLflow could not be read: nothing was judged.
    """
    name = name_of(gate)
    try:
        answer = gate(context)
    except StoreError:
        raise
    except (CompatibilityError, DeviceError) as error:
        answer = Verdict(name, "not_measured", (error.message,))
    except TrtError as error:
        answer = Verdict(name, "failed", (error.message,))
    except Exception as error:
        raise PromotionError(
            f"The gate {name!r} raised {type(error).__name__}: {str(error)[:500]}",
            "a gate that answers a verdict",
            "mend the gate; nothing was moved",
        ) from error
    allowed = bool(getattr(gate, "allow_not_measured", False)) or name in allow_not_measured
    return replace(_verdict(name, answer), gate=name, allowed=allowed)


def _verdict(name: str, answer: Any) -> Verdict:
    if isinstance(answer, Verdict):
        return answer
    if isinstance(answer, str):
        return Verdict(name, "failed", (answer,))
    if answer is True:
        return Verdict(name, "passed")
    if answer is False:
        return Verdict(name, "failed", ("The gate answered False.",))
    raise PromotionError(
        f"The gate {name!r} answered {type(answer).__name__}.",
        "a Verdict, True, False, or the reason of a failure as text",
        "mend the gate: a gate that forgets to answer must not let anything pass",
    )
