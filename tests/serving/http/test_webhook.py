"""Deliveries of MLflow's registry: real ones of a real server, and what is none."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import servers
from hypothesis import given
from hypothesis import strategies as st

from mlflow_trt.errors import SettingError
from mlflow_trt.serving.http.webhook import EVENTS, LONGEST, registered_model, verify_webhook
from mlflow_trt.serving.versions.served import Model

from ..registered import REFERENCE, eventually, make_registry

pytestmark = pytest.mark.xdist_group("webhooks")  # one worker, one server

SECRET = "a secret that both know"


@contextmanager
def receiver(answer) -> Iterator[str]:
    """A server that hands every delivery's body and headers to ``answer``; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer(body, dict(self.headers.items()))
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v2/webhook"
        server.shutdown()


@pytest.fixture(scope="module")
def webhook_server(tmp_path_factory):
    """MLflow's server, which by itself sends webhooks over HTTPS and to public addresses only."""
    pytest.importorskip("mlflow.webhooks.delivery", reason="needs MLflow's webhooks")
    from cryptography.fernet import Fernet

    env = {
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
    with servers.tracking_server(tmp_path_factory.mktemp("webhooks"), env=env) as server:
        yield server


@pytest.fixture
def registry(webhook_server, monkeypatch, tmp_path):
    return make_registry(webhook_server, monkeypatch, tmp_path)


def subscribe(registry, url, secret=SECRET):
    made = registry.client.create_webhook("to-a-server", url, list(EVENTS), secret=secret)
    time.sleep(1.5)  # MLflow remembers for a second that nobody had subscribed
    return made


def test_a_delivery_of_mlflow_is_genuine(registry):
    deliveries = queue.Queue()
    with receiver(lambda *delivery: deliveries.put(delivery)) as url:
        webhook = subscribe(registry, url)
        registry.client.create_model_version(registry.name, "s3://nowhere/model")
        created = deliveries.get(timeout=20)
        registry.point("1")
        moved = deliveries.get(timeout=20)
        registry.client.delete_registered_model_alias(registry.name, "champion")
        removed = deliveries.get(timeout=20)
        tried = registry.client.test_webhook(webhook.webhook_id)
        example = deliveries.get(timeout=20)
        registry.client.delete_webhook(webhook.webhook_id)

    for (body, headers), event in zip((created, moved, removed), ("version", "alias", "alias")):
        assert json.loads(body)["entity"] == f"model_version{'_alias' * (event == 'alias')}"
        assert registered_model(body) == registry.name
        assert verify_webhook(body, headers, SECRET)
        assert verify_webhook(body, {name.lower(): value for name, value in headers.items()}, SECRET)
    assert tried.success
    assert verify_webhook(*example, SECRET)
    assert registered_model(example[0]) == "example_model"

    body, headers = moved
    assert not verify_webhook(body, headers, "another secret")
    assert not verify_webhook(body.replace(b'"1"', b'"2"'), headers, SECRET)
    assert not verify_webhook(body, {**headers, "X-MLflow-Delivery-Id": "another"}, SECRET)
    assert not verify_webhook(body, {**headers, "X-MLflow-Timestamp": str(int(time.time()) + 1)}, SECRET)
    # Half of one delivery and half of another.
    assert not verify_webhook(created[0], headers, SECRET)


def test_a_delivery_without_a_secret(registry):
    deliveries = queue.Queue()
    with receiver(lambda *delivery: deliveries.put(delivery)) as url:
        webhook = subscribe(registry, url, secret=None)
        registry.client.create_model_version(registry.name, "s3://nowhere/model")
        body, headers = deliveries.get(timeout=20)
        registry.client.delete_webhook(webhook.webhook_id)
    assert not verify_webhook(body, headers, SECRET)


def test_a_webhook_has_the_alias_looked_at(registry, monkeypatch):
    pytest.importorskip("torch", reason="the reference backend runs with it")
    registry.point(registry.add(1.0))
    second = registry.add(2.0)
    model = Model("m", registry.uri, REFERENCE, interval=1e6)

    def deliver(body, headers):
        if verify_webhook(body, headers, SECRET) and registered_model(body) == model.registered_model:
            model.refresh()

    model.start()
    try:
        model.wait(60)
        with receiver(deliver) as url:
            webhook = subscribe(registry, url)
            registry.point(second)
            eventually(lambda: model.current.version == second, "the new version is served")
            registry.client.delete_webhook(webhook.webhook_id)
    finally:
        model.close()


# --- Without a server: MLflow's own signature of what a test made up.


def signed(body="{}", secret=SECRET, delivery="6f1c", at=1_700_000_000):
    delivery_module = pytest.importorskip("mlflow.webhooks.delivery", reason="needs MLflow's webhooks")
    return {
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": str(at),
        "X-MLflow-Signature": delivery_module._generate_hmac_signature(secret, delivery, str(at), body),
    }


@pytest.mark.parametrize("age", [0, LONGEST, -LONGEST])
def test_a_delivery_of_the_last_minutes_is_taken(age):
    assert verify_webhook(b"{}", signed(), SECRET, now=1_700_000_000 + age)


@pytest.mark.parametrize("age", [LONGEST + 1, -LONGEST - 1, 1e9])
def test_an_old_or_early_one_is_not(age):
    assert not verify_webhook(b"{}", signed(), SECRET, now=1_700_000_000 + age)


@pytest.mark.parametrize(
    "timestamp", ["", "nan", "inf", "1e9", "-1", "+1700000000", " 1700000000", "٣", "1" * 5000, "x"]
)
def test_a_time_that_is_none(timestamp):
    headers = {**signed(), "X-MLflow-Timestamp": timestamp}
    assert not verify_webhook(b"{}", headers, SECRET, now=1_700_000_000)


@pytest.mark.parametrize("name", ["X-MLflow-Signature", "X-MLflow-Timestamp", "X-MLflow-Delivery-Id"])
def test_a_header_that_is_missing(name):
    headers = signed()
    del headers[name]
    assert not verify_webhook(b"{}", headers, SECRET, now=1_700_000_000)


@pytest.mark.parametrize("signature", ["v1,", "v1", ",", "v1,é", "v1,\udcff", "v2,AAAA"])
def test_a_signature_that_is_none(signature):
    headers = {**signed(), "X-MLflow-Signature": signature}
    assert not verify_webhook(b"{}", headers, SECRET, now=1_700_000_000)


@given(st.binary(), st.dictionaries(st.sampled_from(list(signed())), st.text()))
def test_what_anybody_makes_up_is_refused(body, headers):
    assert not verify_webhook(body, headers, SECRET)


@pytest.mark.parametrize("secret", [None, "", " \n"])
def test_without_a_secret_nothing_is_genuine(secret):
    with pytest.raises(SettingError, match="secret is empty"):
        verify_webhook(b"{}", signed(secret=secret or ""), secret, now=1_700_000_000)


def event(name="resnet", entity="model_version_alias", action="created"):
    return json.dumps({"entity": entity, "action": action, "data": {"name": name}}).encode()


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (event(), "resnet"),
        (event(action="deleted"), "resnet"),
        (event(entity="model_version"), "resnet"),
        (event("é"), "é"),
        (event(entity="prompt_alias"), None),
        (event(entity="model_version_tag", action="set"), None),
        (event(name=3), None),
        (event(name=None), None),
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"3", None),
        (b'{"entity": "model_version", "action": "created"}', None),
        (b'{"entity": "model_version", "action": "created", "data": []}', None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
    ],
)
def test_the_model_that_an_event_is_about(body, name):
    assert registered_model(body) == name


@given(st.binary())
def test_any_body_is_survived(body):
    assert registered_model(body) is None
