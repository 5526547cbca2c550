"""What MLflow's registry sends when an alias moves: whether a delivery is genuine, and which model it is about.

MLflow signs as the Standard Webhooks specification has it, with headers of its own: HMAC-SHA256, under the webhook's
secret, of ``{delivery id}.{unix time}.{body}``, written as ``v1,<base64>``. A webhook of the events
``model_version_alias.created``, ``model_version_alias.deleted`` and, for ``models:/name/latest``,
``model_version.created`` tells all that a server needs to know.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping

from ...errors import SettingError

EVENTS = ("model_version_alias.created", "model_version_alias.deleted", "model_version.created")
"""The events by which a watched model can come to mean another version."""

SIGNATURE = "x-mlflow-signature"
TIMESTAMP = "x-mlflow-timestamp"
DELIVERY = "x-mlflow-delivery-id"

LONGEST = 300.0
"""Seconds that a delivery may be old, or ahead of this machine's clock: an older one may be a copy that was kept."""


def verify_webhook(body: bytes, headers: Mapping[str, str], secret: str, *, now: float | None = None) -> bool:
    """Whether a delivery comes from who knows the secret, and lately.

    Within those five minutes a copy is taken again. It can only have the server look at its aliases.

    Args:
        body: The request's body, as it came.
        headers: Its headers; their names in any case.
        secret: The webhook's.
        now: Seconds since 1970; default: the clock's.

    Raises:
        SettingError: The secret is missing or empty: anybody could sign with it.
    """
    if not secret or not secret.strip():
        raise SettingError("The webhook's secret is empty.", "the secret that MLflow signs with", "give one")
    given = {name.lower(): value for name, value in headers.items()}
    signature, timestamp, delivery = (given.get(name, "") for name in (SIGNATURE, TIMESTAMP, DELIVERY))
    # Digits only: float() would take "nan", which is neither too old nor too new.
    if not signature or not delivery or not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 20):
        return False
    if abs((time.time() if now is None else now) - int(timestamp)) > LONGEST:
        return False
    signed = f"{delivery}.{timestamp}.".encode(errors="replace") + body
    wanted = "v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()
    return hmac.compare_digest(wanted.encode(), signature.encode(errors="replace"))


def registered_model(body: bytes) -> str | None:
    """The registered model that may mean another version now; None: the body is of another event, or of none."""
    try:
        content = json.loads(body)
        event = f"{content['entity']}.{content['action']}"
        name = content["data"]["name"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return name if event in EVENTS and isinstance(name, str) else None
