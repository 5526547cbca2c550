"""``models:/…``, MLflow's URIs of registered and logged models: read and written here alone."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

_SCHEME = "models"
_NEWEST = "latest"


@dataclass(frozen=True)
class ModelUri:
    """What such a URI names: a logged model by its id, or a registered one's version, in one of four ways."""

    name: str | None = None
    """The registered model's; None: ``models:/m-…``, a logged model."""
    version: str | None = None
    """Its number: ``models:/name/3``."""
    alias: str | None = None
    """``models:/name@champion``."""
    newest: bool = False
    """``models:/name/latest``."""
    stage: str | None = None
    """``models:/name/Production``, which MLflow has deprecated."""
    model_id: str | None = None
    """A logged model's: ``m-…``."""
    registry: str = ""
    """The registry's own name, where the URI has it: ``models://profile@databricks/name/3``."""

    def __str__(self) -> str:
        start = f"{_SCHEME}:/" if not self.registry else f"{_SCHEME}://{self.registry}/"
        if self.name is None:
            return f"{start}{self.model_id}"
        if self.alias is not None:
            return f"{start}{self.name}@{self.alias}"
        return f"{start}{self.name}/{self.version or self.stage or _NEWEST}"


def parse(uri: str) -> ModelUri | None:
    """Reads a URI as MLflow does; None: it is of another kind, or malformed."""
    parts = urlsplit(uri, allow_fragments=False)
    path = parts.path
    if parts.scheme != _SCHEME or not path.startswith("/"):
        return None
    name, slash, suffix = path.lstrip("/").partition("/")
    if not name.strip() or "/" in suffix or (slash and not suffix.strip()):
        return None
    registry = parts.netloc
    if suffix.isdigit():
        return ModelUri(name, version=suffix, registry=registry)
    if slash:
        newest = suffix.lower() == _NEWEST
        return ModelUri(name, newest=newest, stage=None if newest else suffix, registry=registry)
    if "@" not in name:
        return ModelUri(model_id=name, registry=registry)
    name, _, alias = name.rpartition("@")
    return ModelUri(name, alias=alias, registry=registry) if name.strip() and alias.strip() else None
