"""Which version a URI means now, and how a registry that is slow or away is watched."""

from __future__ import annotations

import threading
import time

import mlflow
import pytest
from servers import Server

from mlflow_trt.errors import StoreError
from mlflow_trt.serving.versions.alias_watcher import AliasWatcher, WatchedAlias, resolve, watched_alias

from ..registered import eventually, no_threads_left

__all__ = ["no_threads_left"]


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("models:/resnet@champion", WatchedAlias("resnet", "champion")),
        ("models:///resnet@champion", WatchedAlias("resnet", "champion")),
        ("models:/res net (é)@v-2", WatchedAlias("res net (é)", "v-2")),
        ("models:/me@home@champion", WatchedAlias("me@home", "champion")),
        ("models:/resnet/latest", WatchedAlias("resnet", "latest")),
        ("models:/resnet/Latest", WatchedAlias("resnet", "latest")),
        ("models:/resnet@latest", WatchedAlias("resnet", "latest")),
        ("models:/resnet/3", None),
        ("models:/m-0a1b2c", None),
        ("models:/resnet/Production", None),
        ("models:/resnet@", None),
        ("models:/@champion", None),
        ("models:/resnet@champion/x", None),
        ("models://profile@databricks/resnet@champion", None),
        ("runs:/abc/model@champion", None),
        ("s3://bucket/models:/resnet@champion", None),
        ("/models/resnet@champion", None),
        ("model", None),
        ("", None),
    ],
)
def test_what_a_uri_follows(uri, target):
    assert watched_alias(uri) == target


def test_an_alias_is_asked_for(tracking_server: Server, monkeypatch):
    tracking_server.use(monkeypatch)
    client = mlflow.MlflowClient()
    name = "me@home it's (é)"
    client.create_registered_model(name)
    with pytest.raises(StoreError, match="can't be read"):
        resolve(WatchedAlias(name, "latest"))
    for _ in range(11):
        client.create_model_version(name, "s3://nowhere/model")
    client.set_registered_model_alias(name, "champion", "2")

    assert resolve(WatchedAlias(name, "champion")) == f"models:/{name}/2"
    assert resolve(WatchedAlias(name, "latest")) == f"models:/{name}/11"  # by number, not by text
    client.set_registered_model_alias(name, "champion", "10")
    assert resolve(WatchedAlias(name, "champion")) == f"models:/{name}/10"
    client.delete_registered_model_alias(name, "champion")
    with pytest.raises(StoreError, match="champion"):
        resolve(WatchedAlias(name, "champion"))
    with pytest.raises(StoreError, match="nobody"):
        resolve(WatchedAlias("nobody", "champion"))


def test_a_registry_that_is_not_there(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:1")
    with pytest.raises(StoreError, match="can't be read from the registry"):
        resolve(WatchedAlias("resnet", "champion"))


def test_a_registry_of_no_known_kind():
    mlflow.set_tracking_uri("nonsense://registry")
    with pytest.raises(StoreError, match="can't be read from the registry"):
        resolve(WatchedAlias("resnet", "champion"))


# --- the watcher. What it looks at here are functions of the tests.


class Looked:
    """What a watch looks at, and what it reported."""

    def __init__(self) -> None:
        self.value = "one"
        self.looks = 0
        self.begun = threading.Semaphore(0)
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.reports: list[object] = []

    def look(self) -> str:
        self.looks += 1
        value = self.value
        self.begun.release()
        self.may_answer.wait(20)
        if value == "error":
            raise StoreError("away")
        return value

    def texts(self) -> list[str]:
        return [report if isinstance(report, str) else report.found for report in self.reports]


@pytest.fixture
def looked():
    return Looked()


@pytest.fixture
def watch(looked, no_threads_left):
    """Makes and starts a watch that ends with the test."""
    made = []

    def make(interval=1000.0, patience=1000.0):
        watch = AliasWatcher(looked.look, looked.reports.append, interval, patience)
        watch.start()
        made.append(watch)
        return watch

    yield make
    looked.may_answer.set()
    for watch in made:
        watch.close()


def test_it_looks_at_once(watch, looked):
    watch(interval=1000.0)
    eventually(lambda: looked.reports, "the first look")


def test_it_looks_every_interval(watch, looked):
    begin = time.monotonic()
    watch(interval=0.1)
    eventually(lambda: looked.reports, "the first look")
    looked.value = "two"
    eventually(lambda: len(looked.reports) >= 5, "further looks")
    assert time.monotonic() - begin >= 0.4
    eventually(lambda: "two" in looked.texts(), "what it finds later")


def test_it_looks_when_asked(watch, looked):
    made = watch()
    assert made.fresh(10)
    looked.value = "two"
    before = looked.looks
    made.refresh()
    eventually(lambda: "two" in looked.texts(), "the look that was asked for")
    assert looked.looks == before + 1


def test_errors_are_reported_and_looking_goes_on(watch, looked):
    looked.value = "error"
    made = watch()
    assert made.fresh(10)
    looked.value = "one"
    assert made.fresh(10)
    assert looked.texts()[0] == "away"
    assert looked.texts()[-1] == "one"


def test_who_asks_during_a_look_gets_another_one(watch, looked):
    looked.may_answer.clear()
    made = watch()
    looked.begun.acquire(timeout=10)
    looked.value = "two"  # the look under way has read "one"
    done = []
    asking = threading.Thread(target=lambda: done.append(made.fresh(10)))
    asking.start()
    time.sleep(0.05)
    assert looked.reports == []
    assert looked.looks == 1
    looked.may_answer.set()
    asking.join()
    assert done == [True]
    assert looked.texts() == ["one", "two"]


def test_many_who_ask_get_one_look(watch, looked):
    looked.may_answer.clear()
    made = watch()
    looked.begun.acquire(timeout=10)
    for _ in range(1000):
        made.refresh()
    looked.may_answer.set()
    assert made.fresh(10)
    assert looked.looks <= 3


def test_a_registry_that_hangs_is_reported_and_waited_for(watch, looked):
    looked.may_answer.clear()
    made = watch(interval=0.01, patience=0.05)
    eventually(lambda: looked.reports, "the report")
    time.sleep(0.2)
    assert looked.texts() == ["The registry has not answered for 0.05 s."]
    assert looked.looks == 1  # no further threads that hang
    assert not made.fresh(0.05)
    looked.may_answer.set()
    eventually(lambda: "one" in looked.texts(), "the answer, however late")
    eventually(lambda: looked.looks > 1, "looking goes on")


def test_a_registry_that_hangs_does_not_keep_close_waiting(watch, looked):
    looked.may_answer.clear()
    made = watch()
    looked.begun.acquire(timeout=10)
    waiting = threading.Thread(target=made.fresh, args=(20,))
    waiting.start()
    begin = time.monotonic()
    made.close()
    waiting.join()
    assert time.monotonic() - begin < 5
    looked.may_answer.set()
    time.sleep(0.05)
    assert looked.reports == []


def test_a_closed_watch_stays_closed(watch, looked):
    made = watch(interval=0.01)
    eventually(lambda: looked.reports, "a look")
    made.close()
    made.close()
    count = len(looked.reports)
    assert not made.fresh(20)
    made.refresh()
    time.sleep(0.05)
    assert len(looked.reports) == count


def test_a_watch_that_never_began_can_be_closed(looked):
    AliasWatcher(looked.look, looked.reports.append, 1.0).close()
    assert looked.looks == 0
