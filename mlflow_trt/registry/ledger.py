"""The edge to MLflow's registry: reads who holds an alias, and moves it so that of two movers one wins.

**What MLflow gives.** Setting an alias, a tag or a description overwrites whatever is there: nothing can be made to
depend on what was read before. One call of the registry does fail for the second of two callers, on every database:
creating a registered model under a name that is taken (the name is the table's primary key). This module builds on that
call alone.

**The protocol.** The moves of an alias are numbered. To make move *n*, a process

1. creates the registered model ``<name>.<alias>.<n>``, its *claim*, whose tag holds the whole intended move;
2. reads the moves on record again: if *n* is among them, the claim came too late, is void, and is taken back;
3. sets the alias;
4. writes the move as a tag of the version that is holder now;
5. writes the move as a tag of the registered model: from here on *n* is on record;
6. deletes the claim, and reads once more where the alias is.

A claim for the next number that is not on record is *pending*: it was accepted with its evidence and will happen.
Whoever comes next, and finds one, finishes it first (steps 3 to 6, which may be done any number of times and by several
processes at once) instead of waiting for a process that may be dead. So there are no locks, leases or clocks.

**Guaranteed**, on MLflow's SQL stores (SQLite, PostgreSQL, MySQL), directly or behind one ``mlflow server``:

* Of any number of movers that saw the same holder, exactly one gets number *n*; the others learn who did.
* A process killed before its claim exists has changed nothing. Killed later, the alias is where it was or where the
  pending claim says, and the next call of ``promote`` or ``rollback`` for this alias, by anyone, finishes the move.
* Every move on record was made by a claim; numbers have no gaps.

**Not guaranteed**, because MLflow has no compare-and-set for aliases:

* Somebody who sets the alias without this module (by hand, in MLflow's pages) is not held back by a claim. That is
  noticed before a claim is made, and recorded as the ``from_version`` of the next move; within the few calls of a move
  in progress, the move overwrites it.
* A process that sleeps between looking at its claim and setting the alias, while others finish its move and make
  further ones, sets the alias to where it once belonged. It looks again after setting it and puts it right; if it is
  killed in between, the alias differs from the last move on record, which the next call reports.
* A registry whose reads lag behind its writes (a read replica), or that keeps its models in files.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from mlflow.exceptions import MlflowException

from ..errors import PromotionError, SettingError, StoreError, TrtError
from ..evidence import names
from . import alias_history
from .alias_history import Move

_logger = logging.getLogger(__name__)

_GONE = object()
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
_TAKEN = ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS")


@dataclass(frozen=True)
class State:
    """An alias at one moment: one answer of the registry."""

    holder: str | None
    """The version that the alias names."""
    history: tuple[Move, ...]
    """All moves on record, oldest first."""

    @property
    def next(self) -> int:
        """The number of the next move."""
        return self.history[-1].number + 1 if self.history else 1


class Ledger:
    """One alias of one registered model.

    Args:
        name: The registered model.
        alias: Letters, digits, ``_`` and ``-``.
        client: An ``MlflowClient``; default: one of the active tracking and registry URIs.

    Raises:
        SettingError: MLflow does not allow the alias.
    """

    def __init__(self, name: str, alias: str, client: Any = None) -> None:
        if not re.fullmatch(r"[\w\-]{1,100}", alias) or re.fullmatch(r"(?i)latest|v\d+", alias):
            raise SettingError(
                f"The alias {alias!r} can't be used.",
                'up to 100 letters, digits, "_" and "-"; not "latest" and not like "v3", which MLflow reserves',
                "choose another alias",
            )
        if client is None:
            from mlflow import MlflowClient

            client = MlflowClient()
        self.name = name
        self.alias = alias
        self.client = client

    def read(self) -> State:
        """Who holds the alias, and how it came there.

        Raises:
            StoreError: The registry can't be read, or knows no such model.
        """
        with registry_errors(f"{self.name} can't be read from the registry"):
            model = self.client.get_registered_model(self.name)
        holder = model.aliases.get(self.alias)
        return State(None if holder is None else str(holder), alias_history.history_of(model.tags, self.alias))

    def version(self, version: str) -> Any:
        """MLflow's entity of a version; None if there is none."""
        return find_version(self.client, self.name, version)

    def versions(self) -> list[str]:
        """All versions that were not deleted."""
        with registry_errors(f"the versions of {self.name} can't be listed"):
            return [str(v.version) for v in search_versions(self.client, self.name)]

    def pending(self, state: State) -> Move | None:
        """The claim for the next move, if a process made one and did not finish."""
        return self._claimed(state.next)

    def settle(self) -> State:
        """Finishes what a killed process left, if anything, and tells how things stand then.

        Raises:
            StoreError: The registry can't be read or written.
        """
        while True:
            state = self.read()
            claim = self.pending(state)
            if claim is None:
                self._clear(state)
                return state
            # Read after the claim: had its number been on record before, the claim would be void.
            if self.read().next == claim.number:
                with suppress(_GoneError):
                    self._finish(claim)

    def move(
        self,
        kind: Literal["promote", "rollback"],
        seen: State,
        to_version: str,
        **details: Any,
    ) -> Move:
        """Moves the alias, if it still is as it was seen.

        Args:
            kind: Why.
            seen: What the decision was based on, from :meth:`settle`.
            to_version: The new holder.
            **details: Further fields of the move.

        Returns:
            The move as recorded.

        Raises:
            LostError: Another process, or somebody by hand, moved the alias meanwhile.
            PromotionError: The version was deleted meanwhile.
            StoreError: The registry can't be read or written; the message tells whether the move is pending.
        """
        now = self.settle()
        if (now.next, now.holder) != (seen.next, seen.holder):
            raise self._lost(seen, now)
        move = Move(
            name=self.name,
            alias=self.alias,
            number=seen.next,
            kind=kind,
            from_version=seen.holder,
            to_version=to_version,
            **details,
        )
        if not self._make_claim(move):
            raise self._lost(seen, self.settle())
        if self.read().next != move.number:
            self._delete_claim(move)
            raise self._lost(seen, self.settle())
        self._finish(move)
        return move

    def _claimed(self, number: int) -> Move | None:
        with registry_errors(f"the claims on {self.name}@{self.alias} can't be read"):
            model = _unless(_ABSENT, lambda: self.client.get_registered_model(self._claim(number)))
        return alias_history.parse(model.tags.get(names.CLAIM, "")) if model is not None else None

    def _clear(self, state: State) -> None:
        """Deletes the last move's claim if its process was killed just before it did: it means nothing any more."""
        if state.history and state.history[-1].id == getattr(self._claimed(state.history[-1].number), "id", None):
            self._delete_claim(state.history[-1])

    def _finish(self, move: Move) -> None:
        """Steps 3 to 6; harmless if others do them too."""
        there = f"{self.name}@{self.alias}"
        unfinished = f"Move {move.number} of {there}, to version {move.to_version}, is accepted but not finished"
        remedy = "call promote or rollback for this alias again when the registry answers: that finishes the move first"
        with registry_errors(unfinished, remedy):
            if not self._set_alias(move):
                self._delete_claim(move)
                raise _GoneError(
                    f"Version {move.to_version} of {self.name} was deleted before it could become {self.alias}.",
                    "a version that exists",
                    "promote another one",
                )
            text = move.to_json()
            tag = f"{names.MOVE}{move.id}"
            _repeated(lambda: self.client.set_model_version_tag(self.name, move.to_version, tag, text))
            key = f"{names.MOVE}{self.alias}.{move.number}"
            _repeated(lambda: self.client.set_registered_model_tag(self.name, key, text))
        try:
            self._delete_claim(move)
            self._put_right()
        except StoreError as error:
            _logger.warning("Move %d of %s is made and on record, but: %s", move.number, there, error.found)

    def _put_right(self) -> None:
        """Looks again where the alias is: a process that had slept may have written over it, this one or another."""
        state = self.read()
        last = state.history[-1]
        if state.holder != last.to_version and self.pending(state) is None:
            with registry_errors(f"{self.name}@{self.alias} can't be set to version {last.to_version} again"):
                self._set_alias(last)

    def _set_alias(self, move: Move) -> bool:
        """Whether the version is there to take it."""
        set_alias = self.client.set_registered_model_alias
        return _repeated(lambda: set_alias(self.name, self.alias, move.to_version)) is not _GONE

    def _make_claim(self, move: Move) -> bool:
        """Whether the number is this process's own."""
        there = f"{self.name}@{self.alias}"
        what = f"The move of {there} to version {move.to_version} can't be claimed; the alias is unchanged"
        description = (
            f"mlflow-trt moves {there} to version {move.to_version}. This entry goes when that is done; if it stays, "
            f"the process was killed, and the next promote or rollback for {there} finishes the move."
        )
        name = self._claim(move.number)
        remedy = "run it again; should the claim have reached the registry after all, that finishes the move"
        with registry_errors(what, remedy):
            made = _unless(
                _TAKEN,
                lambda: self.client.create_registered_model(name, {names.CLAIM: move.to_json()}, description),
            )
            if made is not None:
                return True
            # MLflow's client repeats a request whose answer was lost: the name may be taken by this very process.
            claim = self._claimed(move.number)
        return claim is not None and claim.id == move.id

    def _delete_claim(self, move: Move) -> None:
        with registry_errors(f"The claim {self._claim(move.number)} can't be deleted"):
            try:
                _unless(_ABSENT, lambda: self.client.delete_registered_model(self._claim(move.number)))
            except MlflowException:
                # Two at once: on some databases the second finds the row gone in the middle of its own deletion.
                if _unless(_ABSENT, lambda: self.client.get_registered_model(self._claim(move.number))) is not None:
                    raise

    def _claim(self, number: int) -> str:
        name = self.name
        if len(name) > 120:  # MLflow's columns hold 256 characters
            name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return f"{name}.{self.alias}.{number}"

    def _lost(self, seen: State, now: State) -> LostError:
        winner = next((m for m in now.history if m.number == seen.next), None)
        before = f"version {seen.holder}" if seen.holder else "no version"
        if winner is not None:
            what = (
                f"{self.name}@{self.alias} moved from {before} to version {winner.to_version} meanwhile "
                f"({winner.kind} by {winner.who} at {winner.when})."
            )
        else:
            what = (
                f"{self.name}@{self.alias} was set from {before} to "
                f"{f'version {now.holder}' if now.holder else 'nothing'} meanwhile, by somebody without mlflow-trt."
            )
        return LostError(
            what,
            f"{before}, which the decision was based on",
            "run it again: it then compares with the present holder",
            winner,
        )


class LostError(PromotionError):
    """Another process moved the alias first."""

    def __init__(self, found: str, expected: str = "", remedy: str = "", winner: Move | None = None) -> None:
        self.winner = winner
        super().__init__(found, expected, remedy)

    def __reduce__(self) -> Any:
        return type(self), (self.found, self.expected, self.remedy, self.winner)


class _GoneError(PromotionError):
    """The version that a claim names was deleted: the claim is void."""


def find_version(client: Any, name: str, version: str) -> Any:
    """MLflow's entity of a version; None if there is none.

    Raises:
        StoreError: The registry can't be read.
    """
    with registry_errors(f"version {version} of {name} can't be read from the registry"):
        return _unless(_ABSENT, lambda: client.get_model_version(name, version))


def search_versions(client: Any, name: str) -> Iterator[Any]:
    """Yields the versions of a registered model."""
    quote = '"' if "'" in name else "'"
    token = None
    while True:
        page = client.search_model_versions(f"name={quote}{name}{quote}", page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _unless(codes: tuple[str, ...], call: Callable[[], Any]) -> Any:
    """The call's answer; None if MLflow refuses with one of these codes."""
    try:
        return call()
    except MlflowException as error:
        if error.error_code not in codes:
            raise
        return None


def _repeated(write: Callable[[], Any]) -> Any:
    """Writes what others may be writing at the same moment: of two equal rows, a database refuses the second.

    Returns:
        The call's answer; ``_GONE`` if what it writes to was deleted.
    """
    for pause in (0.05, 0.2, 0.5, None):
        try:
            return write()
        except MlflowException as error:
            if error.error_code in _ABSENT:
                return _GONE
            if pause is None:
                raise
            time.sleep(pause)


@contextmanager
def registry_errors(what: str, remedy: str = "") -> Iterator[None]:
    """Turns what MLflow, its HTTP client or its database raise into a StoreError."""
    try:
        yield
    except TrtError:
        raise
    except Exception as error:
        reason = str(getattr(error, "message", "") or error).strip().splitlines() or [""]
        raise StoreError(
            f"{what}: {type(error).__name__}: {reason[0][:500]}",
            "a registry that this machine reaches and may write",
            remedy or "check the name, MLFLOW_TRACKING_URI, MLFLOW_REGISTRY_URI and permissions, then run it again",
        ) from error
