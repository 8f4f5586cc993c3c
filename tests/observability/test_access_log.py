"""Test the id of every request, and its line in the access log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

import handler
from settings import BadSetting, Settings
from storage.store import Engine
from tests.support.wsgi import Client, a_store
from web.observability import access_log


@pytest.fixture
def store() -> Iterator[Engine]:
    with a_store() as store:
        yield store


@pytest.mark.parametrize("given", ["a", "Root=1-67891233-abcdef012345678912345678", "x" * 128, "a/b+c@d:e_f.g-h"])
def test_a_request_keeps_the_id_it_came_with(store: Engine, given: str) -> None:
    reply = Client(handler.make_app(Settings(), store)).get("/health", X_Request_Id=given)
    assert reply.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\nb", "a\r\nSet-Cookie: x", "é", '"', "\x1b[31m"])
@pytest.mark.parametrize("target", ["/health", "/queues/none", "/nowhere", "/messages?limit=x", "/messages%ff"])
def test_a_request_without_a_valid_id_gets_a_new_one(store: Engine, given: str, target: str) -> None:
    client = Client(handler.make_app(Settings(), store))
    ids = {client.get(target, X_Request_Id=given).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in ids)


def test_two_processes_do_not_give_the_same_ids(store: Engine) -> None:
    clients = [Client(handler.make_app(Settings(), store)) for _ in range(2)]
    assert len({client.get("/health", X_Request_Id="").headers["x-request-id"] for client in clients}) == 2


def logged(store: Engine, form: str, *requests: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[bytes] = []
    monkeypatch.setattr(access_log.os, "write", lambda _, line: lines.append(line))  # type: ignore[attr-defined]
    client = Client(handler.make_app(Settings(access_log=form), store), X_Request_Id="id-1")
    for method, target in requests:
        client.call(method, target)
    return [line.decode() for line in lines]


def test_a_json_line_has_the_route_and_not_the_path(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = logged(
        store, "json", ("DELETE", "/queues/jobs/messages/jobs~1~abc"), ("GET", "/queues/a%20b/messages"),
        ("BREW", "/nowhere?x"), monkeypatch=monkeypatch,
    )  # fmt: skip
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [(t["method"], t["route"], t["queue"], t["status"]) for t in entries] == [
        ("DELETE", "/queues/{queue}/messages/{receipt}", "jobs", 404),
        ("GET", "/queues/{queue}/messages", "-", 400),
        ("other", "other", "-", 404),
    ]
    assert {t["request_id"] for t in entries} == {"id-1"}
    assert {t["client"] for t in entries} == {"127.0.0.1"}
    assert all(t["ms"] >= 0 and line.endswith("}\n") for t, line in zip(entries, lines, strict=True))


def test_a_plain_line_has_the_same_values_with_spaces_between(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = logged(store, "plain", ("GET", "/health"), monkeypatch=monkeypatch)
    assert re.fullmatch(r"\S+Z 127\.0\.0\.1 - GET /health - 200 \d+\.\d id-1\n", line)


def test_no_line_is_written_unless_it_is_enabled(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert logged(store, "", ("GET", "/health"), monkeypatch=monkeypatch) == []


def test_an_unknown_log_format_is_refused_at_the_start() -> None:
    with pytest.raises(BadSetting, match=r"^QUEUE_ACCESS_LOG must be json or plain$"):
        Settings.from_env({"QUEUE_ACCESS_LOG": "xml"})
