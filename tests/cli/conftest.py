"""A model to ask about."""

from __future__ import annotations

import pytest
from manifests import MANIFEST


@pytest.fixture
def folder(tmp_path) -> str:
    """A folder with a manifest in it, and nothing else."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text(MANIFEST.to_json())
    return str(tmp_path / "model")
