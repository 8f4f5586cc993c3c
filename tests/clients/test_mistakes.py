"""Test that common mistakes of a client's user are reported at once, with the way to correct them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from clients import Closed, LeasedMessage, QueueClient, QueueError, Unauthenticated, Unreachable
from clients.http import paths
from storage import validation
from tests.clients.connect import ClientClass, both_classes
from tests.support.live import LiveServer

SECRET = "secret-secret-secret"


@pytest.fixture
def client(server: LiveServer, queue: str) -> Iterator[QueueClient]:
    with QueueClient(server.url, queue=queue, retry_for=5) as client:
        yield client


@pytest.mark.parametrize(
    "send",
    [
        lambda client: client.send(b"x"),
        lambda client: client.send_many([b"x"]),
        lambda client: client.send_many(["x", {"text": b"x"}]),
        lambda client: client.send("x", attributes={"photo": b"x"}),
        lambda client: client.transact(send=[{"text": bytearray(b"x")}]),
    ],
    ids=["send", "send_many", "send_many, a document", "an attribute", "transact"],
)
def test_bytes_are_refused_with_what_to_do(client: QueueClient, send: Callable[[QueueClient], object]) -> None:
    with pytest.raises(TypeError, match=r"not bytes: decode them, or send binary data as base64"):
        send(client)
    assert client.peek() == []


def test_a_value_that_json_cannot_hold_is_named(client: QueueClient) -> None:
    with pytest.raises(TypeError, match=r"cannot hold \{1\}, which is of type set"):
        client.send("x", attributes={"n": {1}})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["a b", "jobs/eu", ".x", "x" * 81, "é", "jobs\n", 5])
def test_a_bad_queue_name_is_refused_before_anything_is_sent(name: str) -> None:
    with pytest.raises(ValueError, match=r"not the name of a queue: .*; use at most 80 letters, digits, '\.', '_'"):
        QueueClient(queue=name)
    with pytest.raises(ValueError, match="not the name of a queue"):
        QueueClient("http://127.0.0.1:1", retry_for=0).send("x", queue=name)


def test_the_client_takes_the_names_that_the_service_takes() -> None:
    assert paths.QUEUE_NAME == validation.QUEUE_NAME


def test_a_text_that_is_no_string_is_refused_with_what_to_do(client: QueueClient) -> None:
    for text in ({"text": "x"}, 5, None):
        with pytest.raises(TypeError, match=r"a text is a string, not .*: use json\.dumps, or send_many"):
            client.send(text)  # type: ignore[arg-type]
    assert client.peek() == []


@pytest.mark.parametrize("handler", [None, "make_thumbnail"])
def test_a_handler_that_cannot_be_called_is_refused_before_a_message_is_read(client: QueueClient, handler: Any) -> None:
    client.send("x")
    with pytest.raises(TypeError, match="the handler must be a function that takes a message, not "):
        client.work(handler, idle=0)
    assert client.stats()["received"] == 0


class Awaited:
    async def __call__(self, message: LeasedMessage) -> None:
        pass


def test_an_object_that_is_awaited_is_refused_as_handler(client: QueueClient) -> None:
    client.send("x")
    with pytest.raises(TypeError, match="the handler is an async function"):
        client.work(Awaited(), idle=0)
    assert client.stats()["received"] == 0


def test_the_event_of_asyncio_is_refused_as_stop(client: QueueClient) -> None:
    stop: Any = asyncio.Event()
    for call in (client.consume, lambda **options: client.work(print, **options)):
        with pytest.raises(TypeError, match=r"^stop must be threading\.Event, not asyncio\.locks\.Event$"):
            call(stop=stop, idle=0)


def test_a_closed_client_cannot_be_entered(client: QueueClient) -> None:
    client.close()
    with pytest.raises(Closed):
        client.__enter__()


@both_classes
@pytest.mark.parametrize(
    ("name", "required"),
    [
        ("send", {"text": "x"}), ("receive", {}), ("receive_runs", {"lease": 1}), ("consume", {}), ("peek", {}),
        ("ack_and_receive_runs", {"messages": [], "lease": 1}), ("purge", {}), ("redrive", {}),
        ("work", {"handler": print}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_argument_that_a_call_does_not_have_is_reported_with_the_call(
    server: LiveServer, client_class: ClientClass, name: str, required: dict[str, Any]
) -> None:
    with client_class(server.url, retry_for=5) as client, pytest.raises(TypeError) as refused:
        getattr(client, name)(**required, prio=3)
    assert str(refused.value) == f"{name}() got an unexpected keyword argument 'prio'"


@pytest.mark.parametrize("url", ["localhost:5000", "127.0.0.1:5000", "localhost", "ftp://localhost"])
def test_a_url_without_a_scheme_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ValueError, match=r"starts with http:// or https://, as in http://127\.0\.0\.1:5000, not '"):
        QueueClient(url)


@pytest.mark.parametrize("url", ["http://", "http://:5000", "http://localhost?queue=jobs"])
def test_a_url_without_a_host_or_with_a_query_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="has a host and no query"):
        QueueClient(url)


@both_classes
def test_https_to_a_port_without_tls_is_reported_at_once(server: LiveServer, client_class: ClientClass) -> None:
    start = time.monotonic()
    reported = pytest.raises(Unreachable, match=r"does not speak TLS; use http:// instead of https://")
    with client_class(server.url.replace("http:", "https:"), retry_for=20) as client, reported:
        client.send("x")
    assert time.monotonic() - start < 10


def test_a_missing_token_is_reported_with_the_ways_to_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUEUE_TOKEN", raising=False)
    with LiveServer({"QUEUE_TOKENS": f"all:{SECRET}:send,receive,admin:*"}) as guarded:
        with pytest.raises(Unauthenticated, match="set QUEUE_TOKEN, or pass token=") as refused:
            QueueClient(guarded.url).send("x")
        assert (refused.value.status, refused.value.code) == (401, "unauthenticated")
        with pytest.raises(Unauthenticated, match="the service does not know this token"):
            QueueClient(guarded.url, token="wrong-wrong-wrong").send("x")
        monkeypatch.setenv("QUEUE_TOKEN", SECRET)
        monkeypatch.setenv("QUEUE_URL", guarded.url)
        QueueClient().send("x")
        with pytest.raises(Unauthenticated, match="set QUEUE_TOKEN"):
            QueueClient(token="").send("x")  # explicitly none
        assert [message.text for message in QueueClient(queue="default").peek()] == ["x"]


def test_the_arguments_precede_the_environment(monkeypatch: pytest.MonkeyPatch, server: LiveServer) -> None:
    monkeypatch.setenv("QUEUE_URL", "http://127.0.0.1:1")
    assert QueueClient().url == "http://127.0.0.1:1"
    assert QueueClient(server.url).url == server.url
    monkeypatch.setenv("QUEUE_URL", "")
    assert QueueClient().url == "http://127.0.0.1:5000"


def test_a_wait_for_a_busy_service_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with QueueClient("http://127.0.0.1:1", retry_for=1.2) as client, pytest.raises(QueueError):
        client.send("x")
    assert [record.getMessage() for record in caplog.records] == [
        "http://127.0.0.1:1 does not answer: connection refused; retrying for up to 1.2 s"
    ]
