"""Test /status: a few numbers about the node, equal from every worker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from urllib.request import urlopen

import pytest

import handler
from settings import VERSION, Settings
from storage.errors import Unavailable
from storage.store import Engine
from tests.support.live import LiveServer
from tests.support.wsgi import Client, a_store
from web.observability.shared_counters import SharedCounters
from web.observability.status import summary


@pytest.fixture
def store() -> Iterator[Engine]:
    with a_store() as store:
        yield store


@pytest.fixture
def client(store: Engine) -> Client:
    return Client(handler.make_app(Settings(), store))


def test_the_status_has_the_service_its_disk_and_its_totals(client: Client, store: Engine) -> None:
    before = client.get("/status").json
    assert (before["version"], before["engine"]) == (VERSION, "sqlite")
    assert abs(datetime.fromisoformat(before["started_at"]).timestamp() - time.time()) < 600
    assert before["database_bytes"] > 0
    assert before["log_bytes"] >= 0
    assert before["disk_free_bytes"] > 0
    assert client.post("/messages", {"text": "a"}).status == 200
    assert client.get("/nowhere").status == 404
    after = client.get("/status").json
    assert after["requests"] - before["requests"] == 3
    assert after["errors"] == 0
    assert after["commits"] > before["commits"]
    assert after["commit_seconds"] > before["commit_seconds"]
    assert client.get("/status?all=1").status == 400


def test_the_totals_are_the_sums_over_all_workers(store: Engine) -> None:
    shared = SharedCounters(slots=2)
    for statuses in [(200, 503), (204, 500, 404, 418)]:
        counters = shared.take()
        for route, status in enumerate(statuses):
            counters.begin()
            counters.end(route, status, 0.5)
        counters.committed(3, 0.25)
        counters.waiting(2)
    found = summary(shared, store.disk())
    assert (found["requests"], found["errors"]) == (6, 2)
    assert (found["commits"], found["commit_seconds"], found["waiting_readers"]) == (2, 0.5, 4)


def test_a_status_that_cannot_be_read_is_a_problem(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise Unavailable("the disk failed")

    monkeypatch.setattr(store, "disk", fail)
    assert Client(handler.make_app(Settings(), store)).get("/status").json["code"] == "unavailable"


def test_every_worker_returns_the_status_of_the_node() -> None:
    with LiveServer({"WEB_CONCURRENCY": "2"}) as server:
        urlopen(f"{server.url}/health").read()
        found = [json.loads(urlopen(f"{server.url}/status").read()) for _ in range(20)]
    assert len({one["started_at"] for one in found}) == 1
    requests = [one["requests"] for one in found]
    assert requests == sorted(requests)
    assert requests[0] >= 1
