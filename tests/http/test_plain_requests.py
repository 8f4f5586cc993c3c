"""The loop reads plain requests exactly as gunicorn's parser does, and leaves all others to that parser."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import RequestParser, wsgi
from hypothesis import given, settings
from hypothesis import strategies as st

from web.server import plain

CONFIG = Config()
CONFIG.set("forwarder_headers", "")
CONFIG.set("http_parser", "python")
PEER, SERVER = ("192.0.2.1", 4711), ("127.0.0.1", 5000)
POST = b"POST /queues/a%20b/messages?wait=1 HTTP/1.1\r\nHost: q:5000\r\nContent-Length: 5\r\nX-A:  b c\t\r\n\r\n"


class Socket:
    """A socket that returns the client's bytes."""

    def __init__(self, sent: bytes) -> None:
        self.sent = io.BytesIO(sent)

    def recv(self, size: int) -> bytes:
        return self.sent.read(size)

    def send(self, data: bytes) -> int:
        raise AssertionError("nothing is sent for a plain request before its reply")


def by_gunicorn(sent: bytes) -> tuple[dict[str, Any], bytes, bool]:
    """Return the environ, the body, and whether the connection closes after the request."""
    sock: Any = Socket(sent)
    request = next(RequestParser(CONFIG, sock, PEER))
    _, environ = wsgi.create(request, sock, PEER, SERVER, CONFIG)
    return dict(environ), environ["wsgi.input"].read(), request.should_close()


def assert_read_alike(head: bytes) -> None:
    environ = plain.read_head(head)
    assert environ is not None
    body = b"x" * min(int(environ.get("CONTENT_LENGTH", "0")), 100_000)
    full, read, closes = by_gunicorn(head + body + b"GET /next HTTP/1.1\r\n")
    assert environ.items() <= full.items()
    assert {name for name in full if name.startswith(("HTTP_", "CONTENT_"))} <= environ.keys()
    assert read == body
    assert closes == (environ.get("HTTP_CONNECTION", "").lower() == "close")


def test_a_plain_request_is_read_as_gunicorn_reads_it() -> None:
    assert_read_alike(POST)
    environ = plain.read_head(POST)
    assert environ is not None
    assert (environ["PATH_INFO"], environ["QUERY_STRING"], environ["HTTP_X_A"]) == (
        "/queues/a b/messages",
        "wait=1",
        "b c",
    )


def test_requests_with_the_same_fields_share_no_environ() -> None:
    first = plain.read_head(POST)
    assert first is not None
    first["CONTENT_LENGTH"] = "7"
    assert_read_alike(POST)


# Valid and invalid parts of heads.
tokens = st.sampled_from([
    "Host: q", "Host: [::1]:80", "Host:", "Host: a b", "Host: a,b", "Content-Length: 5", "Content-Length: 05",
    "Content-Length: +5", "Content-Length: 5,5", "Content-Length : 5", "content-length: 5", "Content-Length: \t5 ",
    "Content-Length: 99999999999", "Content-Length: ٣", "Transfer-Encoding: chunked",
    "Transfer-Encoding : chunked", "transfer-encoding: identity", "Expect: 100-continue", "Upgrade: h2c",
    "Connection: close", "Connection: Keep-Alive", "Connection: upgrade", "Connection: close, x",
    "HTTP2-Settings: x", "TE: trailers", "Trailer: a", "X_Under: 1", "SCRIPT_NAME: /x", "Script-Name: /x",
    "X-Forwarded-Proto: https", "X-A: 1", "x-a: 2", "X-B: \x7f", "X-B: \x00", "X-B: é", " folded", "\tfolded",
    "no colon", ": no name", "X-C:", "X-D: a\tb", "X-E: a\rb", "X-F: a\nb", "Content-Type: text/plain",
    "Content_Length: 7", "Content-Length\x00: 5", "Accept: */*", "Cookie: a=b", "X" * 300 + ": 1",
    "X-G: " + "y" * 8_150,
])  # fmt: skip
targets = st.sampled_from([
    "/", "/messages", "/messages?wait=1", "/a%20b", "/a%ff", "/a#b", "/a?b?c", "/a?b#c", "//a", "/a b", "*", "a", "http://q/a",
    "/é", "/a\x7f", "/a?", "/?", "/a;b", "/%", "/a//b", "/\\", '/"<>|^`{}', "",
])  # fmt: skip
methods = st.sampled_from(
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "get", "CONNECT", "TRACE", "G ET", ""]
)
versions = st.sampled_from(["HTTP/1.1"] * 6 + ["HTTP/1.0", "HTTP/2.0", "http/1.1", "HTTP/1.1 ", "HTTP/01.1", ""])
ends = st.sampled_from(["\r\n"] * 9 + ["\n", "\r", "\r\r\n", "\r\n\r\n"])
lines = st.tuples(methods, targets, versions).map(" ".join)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    named = draw(st.lists(tokens, max_size=6))
    fields = draw(st.permutations(["Host: q", *named])) if draw(st.booleans()) else named
    return "".join([line + draw(ends) for line in [draw(lines), *fields]] + ["\r\n"]).encode("latin-1", "replace")


@settings(max_examples=3_000, deadline=None)
@given(heads())
def test_gunicorn_reads_each_plain_head_alike(head: bytes) -> None:
    end = head.find(b"\r\n\r\n") + 4
    if end >= 4 and plain.read_head(head[:end]) is not None:
        assert_read_alike(head[:end])


@settings(max_examples=2_000, deadline=None)
@given(st.data())
def test_a_plain_head_with_a_byte_changed_is_read_alike_or_is_not_plain(data: st.DataObject) -> None:
    head = bytearray(POST)
    for _ in range(data.draw(st.integers(1, 3))):
        head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    end = head.find(b"\r\n\r\n") + 4
    if end >= 4 and plain.read_head(bytes(head[:end])) is not None:
        assert_read_alike(bytes(head[:end]))


@pytest.mark.parametrize(
    "changed",
    [
        (b"Host: q:5000", b"Host: q:5000\r\nHost: q"), (b"Host: q:5000\r\n", b""), (b"HTTP/1.1", b"HTTP/1.0"),
        (b"X-A: ", b"X_A: "), (b"X-A: ", b"X-A : "), (b"X-A: ", b" X-A: "),
        (b"X-A: ", b"Expect: 100-continue\r\nX-A: "),
        (b"X-A: ", b"Transfer-Encoding: chunked\r\nX-A: "), (b"X-A: ", b"Connection: upgrade\r\nX-A: "),
        (b"X-A: ", b"Content-Length: 5\r\nX-A: "), (b"Length: 5", b"Length: +5"), (b"Length: 5", b"Length: 5, 5"),
        (b"\r\nX-A", b"\nX-A"), (b"/queues", b"//queues"), (b"/queues", b"http://q/queues"), (b"POST", b"TRACE"),
        (b"X-A: ", b"".join(b"X-%d: 1\r\n" % n for n in range(99)) + b"X-A: "),
    ],
)  # fmt: skip
def test_a_head_that_is_not_plain_is_left_to_gunicorn(changed: tuple[bytes, bytes]) -> None:
    assert changed[0] in POST
    assert plain.read_head(POST.replace(*changed)) is None


def reply(status: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(status, headers)
        return [body]

    return plain.answer(app, {"SERVER_PROTOCOL": "HTTP/1.1"}, lambda: False).begin


def test_a_reply_is_one_piece() -> None:
    assert reply("200 OK", [("Content-Length", "3")], b"abc").endswith(b"\r\nContent-Length: 3\r\n\r\nabc")
    assert reply("204 No Content", [], b"").startswith(b"HTTP/1.1 204 No Content\r\nServer: gunicorn\r\nDate: ")


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x", "a\nb", "a\rb"])
def test_no_header_of_a_reply_can_hold_another(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        reply("200 OK", [("X-A", value)], b"")


@pytest.mark.parametrize(
    "received", [b"G", b"GET ", b"DELETE /messages/a~1~b", b"POST /messages HTTP/1.1\r", POST[:60]]
)
def test_the_loop_waits_for_the_rest_of_a_plain_request(received: bytes) -> None:
    assert plain.may_begin(received)


@pytest.mark.parametrize("received", [b"\x16\x03\x01", b"get / ", b"GET /\n", b" GET /", b"GET /\r\n", b"X" * 9_000])
def test_what_begins_otherwise_is_left_to_gunicorns_parser_at_once(received: bytes) -> None:
    assert not plain.may_begin(received)


@pytest.mark.parametrize("action", ["SendMessageBatch", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"])
def test_the_loop_runs_a_batch_of_an_sqs_client(action: str) -> None:
    entries = [{"Id": f"{n}", "ReceiptHandle": "q~1~1", "VisibilityTimeout": 1} for n in range(10)]
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/", "HTTP_X_AMZ_TARGET": f"AmazonSQS.{action}"}
    assert plain.weigh(environ, json.dumps({"QueueUrl": "q", "Entries": entries}).encode()) is plain.Weight.LIGHT
    assert plain.weigh(environ, b"[" * 1_000) is plain.Weight.LONG
