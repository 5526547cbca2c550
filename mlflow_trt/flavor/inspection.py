"""What can be asked of a logged model without fetching its plans, on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path

from .. import store
from ..plan import compatibility
from ..plan.host import parse_host, probe
from ..plan.manifest import Host, Manifest


def inspect(model_uri: str | Path) -> Manifest:
    """Reads the manifest of a model; nothing else is downloaded.

    Args:
        model_uri: A local folder, or any URI that MLflow takes for a model.

    Raises:
        ManifestError: There is no manifest, or it is malformed.
        StoreError: The store or registry can't be read.
    """
    return store.open_model(model_uri).manifest


def requirements(model_uri: str | Path) -> list[str]:
    """What pip has to install on this machine so that a model loads here: the exact TensorRT release, no torch.

    Args:
        model_uri: A local folder, or any URI that MLflow takes for a model. Only the manifest is downloaded.

    Returns:
        One entry, ``["tensorrt-rtx==1.6.1.120"]``: the release of the first plan that this machine's GPU takes, or,
        where there is no GPU, of the first plan.

    Raises:
        CompatibilityError: This machine's GPU takes none of the plans.
        ManifestError: There is no manifest, or it is malformed.
        StoreError: The store or registry can't be read.
    """
    return compatibility.requirements(inspect(model_uri), probe())


def check(model_uri: str | Path, host: Host | str | None = None) -> compatibility.Report:
    """Tells which plans of a model load on a host, and why the others don't.

    Args:
        model_uri: A local folder, or any URI that MLflow takes for a model.
        host: Default: this machine. Or a :class:`Host`, or text such as ``"tensorrt_rtx==1.6.1.120,sm_89"``.

    Returns:
        A verdict for every plan; ``report.accepted`` is the one that :func:`load_model` would take there.

    Raises:
        ManifestError: There is no manifest, or it is malformed.
        SettingError: The host's text can't be read.
        StoreError: The store or registry can't be read.
    """
    where = parse_host(host) if isinstance(host, str) else host or probe()
    return compatibility.check_all(inspect(model_uri), where)
