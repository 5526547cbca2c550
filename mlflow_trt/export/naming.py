"""What a model's URI says of its name and version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import store
from ..errors import SettingError
from ..model_uri import parse as parse_uri


@dataclass(frozen=True)
class Named:
    """The parts of a URI; None: it does not say."""

    name: str | None
    """The registered model, or the local folder."""
    version: int | None = None
    alias: str | None = None


def parse(model_uri: str | Path) -> Named:
    """Reads a model's URI.

    Raises:
        SettingError: It names a version by a word that means another one tomorrow: ``latest``, a stage.
    """
    local = store.local_folder(model_uri)
    if local is not None:
        return Named(local.resolve().name)
    read = parse_uri(str(model_uri))
    if read is None or read.name is None or read.registry:
        return Named(None)
    if read.newest or read.stage is not None:
        raise SettingError(
            f"{model_uri} names no version that stays the same.",
            "models:/NAME/3 or models:/NAME@ALIAS",
            "give the version's number, or an alias",
        )
    return Named(read.name, None if read.version is None else int(read.version), read.alias)
