"""Test rows 6, 7, 16–19 and 23 of docs/reliability.md: invalid input changes and reveals nothing."""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import random
import re
import socket
import struct
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import apsw
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import handler
from settings import Settings
from storage.store import Engine
from tests.support.figures import AddRow
from tests.support.live import LiveServer
from tests.support.wsgi import Client, Reply, a_store, check, check_problem
from web.native import responses

LONG = [pytest.mark.slow, pytest.mark.torture]
MAX_BODY = 1024 * 1024
Headers = dict[str, str]


@pytest.fixture(scope="module")
def service() -> Iterator[LiveServer]:
    """Run a service with one worker, to watch its memory and to keep connections in one process."""
    with LiveServer({"WEB_CONCURRENCY": "1", "QUEUE_MAX_BODY": str(MAX_BODY)}) as live:
        yield live


@pytest.fixture
def route(service: LiveServer, queue: str) -> Iterator[str]:
    """Return the route of a queue with one message; after the test, assert that no queue has changed."""
    for path in ("/messages", f"/queues/{queue}/messages"):
        assert ask(service, "POST", path, b'{"text": "witness"}').status == 200
    before = all_queues(service)
    yield f"/queues/{queue}/messages"
    assert all_queues(service) == before
    assert ask(service, "GET", f"/queues/{queue}/messages").json == {"text": "witness"}
    assert ask(service, "GET", "/messages?limit=1000").json == [{"text": "witness"}]
    assert ask(service, "DELETE", f"/queues/{queue}").status == 204


def all_queues(service: LiveServer) -> dict[str, dict[str, Any]]:
    queues = ask(service, "GET", "/queues").json["queues"]
    return {queue["queue"]: queue["stats"] | {"oldest_age": None} for queue in queues}


def request(method: str, target: str, body: bytes = b"", headers: Headers | None = None, *, last: bool = True) -> bytes:
    """Return a request's bytes, with a Content-Length unless the headers frame the body themselves."""
    fields = {"Host": "queue", **({"Connection": "close"} if last else {}), **(headers or {})}
    if body and not {"Content-Length", "Transfer-Encoding"} & fields.keys():
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def ask(service: LiveServer, method: str, target: str, body: bytes = b"", headers: Headers | None = None) -> Reply:
    """Send one valid request and return its reply, checked like every reply."""
    (reply,) = talk(service, request(method, target, body, headers))
    check(reply, method)
    return reply


def talk(service: LiveServer, sent: bytes, *, fin: bool = False) -> list[Reply]:
    """Send bytes and return all replies until the service closes the connection; with `fin` close the client's half.

    The service treats a reader that closed its half as disconnected, so it consumes nothing. Writes are done.
    """
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # the service may have answered and closed early
            connection.sendall(sent)
        return answers(connection, fin=fin)


def answers(connection: socket.socket, *, fin: bool = False) -> list[Reply]:
    received = b""
    if fin:
        with suppress(OSError):  # the service may have closed the connection; its answer is still readable
            connection.shutdown(socket.SHUT_WR)
    with suppress(ConnectionError):
        while piece := connection.recv(65_536):
            received += piece
    replies = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        replies.append(Reply(int(first.split(" ")[1]), headers, rest[:length]))
        received = rest[length:]
    return replies


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


def assert_refused(reply: Reply, *statuses: int) -> None:
    assert reply.status in statuses or (not statuses and 400 <= reply.status < 500), reply
    check_problem(reply)


CHUNKED = {"Transfer-Encoding": "chunked"}
GOOD = b'{"text": "intruder"}'


def test_a_valid_request_of_each_framing_is_stored(service: LiveServer, queue: str) -> None:
    target = f"/queues/{queue}/messages"
    assert ask(service, "POST", target, GOOD).status == 200
    assert ask(service, "POST", target, chunked(GOOD[:5], GOOD[5:]) + b"0\r\n\r\n", CHUNKED).status == 200
    assert ask(service, "POST", target, chunked(GOOD) + b"0\r\nNote: a trailer\r\n\r\n", CHUNKED).status == 200
    both = request("POST", target, GOOD, last=False) + request("GET", f"{target}?limit=9")
    assert [reply.status for reply in talk(service, both)] == [200, 200]
    assert all_queues(service)[queue]["received"] == 4


# Row 6: requests that resemble a read and are not one.


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
@pytest.mark.parametrize("query", ["", "?limit=10", "?lease=60", "?queue=default", "?wait=5"])
def test_row_6_head_and_options_consume_nothing(service: LiveServer, route: str, method: str, query: str) -> None:
    for target in (route, "/messages"):
        assert ask(service, method, target + query).status == {"HEAD": 405, "OPTIONS": 204}[method]


PATHS = [
    "/messages%ff", "/messages%FF%FE", "/%ffmessages", "//messages", "/messages//", "///messages", "/messages%00",
    "/messages%0a", "/messages%0d%0a", "/messages%20", "/messages/", "/messages;x", "/messages%3Fa", "/%2Fmessages",
    "/./messages", "/queues/../messages", "/messages%c3%28", "/messages%ed%a0%80", "/Messages",
    "http://other//messages",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_row_6_a_path_that_is_nearly_a_route_consumes_nothing(service: LiveServer, route: str, path: str) -> None:
    for target in (path, path.replace("/messages", route)):
        for headers in ({}, {"Idempotency-Key": "k"}):
            assert_refused(ask(service, "GET", target, headers=headers), 400, 404)
            assert_refused(ask(service, "POST", target, GOOD, headers), 400, 404, 405)


@pytest.mark.parametrize(
    "name", ["SCRIPT_NAME", "PATH_INFO", "Script-Name", "X-Original-URL", "X-HTTP-Method-Override"]
)
@pytest.mark.parametrize("value", ["/x", "/health", "GET", "/messages"])
def test_row_6_a_header_cannot_turn_one_request_into_another(
    service: LiveServer, route: str, name: str, value: str
) -> None:
    assert ask(service, "GET", "/health", headers={name: value}).json == {"status": "alive"}
    assert_refused(ask(service, "GET", "/x" + route, headers={name: value}), 404)


# Row 7: a client that dies while it sends its body.


SHORT_BODIES = [
    (GOOD, "application/json"),
    (GOOD[:-1], "application/json"),
    (b"[" + GOOD + b"]", "application/json"),
    (GOOD + b"\n", "application/x-ndjson"),
    (GOOD + b"\n" + GOOD, "application/x-ndjson"),
    (b"intruder", "text/plain"),
    (b"", "text/plain"),
]


@pytest.mark.parametrize(("body", "kind"), SHORT_BODIES)
@pytest.mark.parametrize("missing", [1, 100_000])
def test_row_7_a_body_shorter_than_declared_stores_nothing(
    service: LiveServer, route: str, body: bytes, kind: str, missing: int
) -> None:
    headers = {"Content-Type": kind, "Content-Length": str(len(body) + missing)}
    (reply,) = talk(service, request("POST", route, body, headers), fin=True)
    assert_refused(reply, 400)


@pytest.mark.parametrize(("body", "kind"), SHORT_BODIES)
def test_row_7_chunks_without_their_end_store_nothing(service: LiveServer, route: str, body: bytes, kind: str) -> None:
    whole = chunked(body) if body else b""
    for sent in [whole, whole + b"0\r\n", whole + b"0\r\nNote: x\r\n", chunked(body + b"x")[: -len(b"x\r\n")]]:
        (reply,) = talk(service, request("POST", route, sent, CHUNKED | {"Content-Type": kind}), fin=True)
        assert_refused(reply, 400)


def test_row_7_a_connection_reset_within_the_body_stores_nothing(service: LiveServer, route: str) -> None:
    for headers, body in [({"Content-Length": "21"}, GOOD), (CHUNKED, chunked(GOOD))]:
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
            connection.sendall(request("POST", route, body, headers))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, not FIN
    assert ask(service, "GET", "/health").status == 200


def test_row_7_a_short_body_settles_nothing(service: LiveServer, queue: str) -> None:
    target = f"/queues/{queue}/messages"
    ask(service, "POST", target, GOOD)
    receipt = ask(service, "GET", f"{target}?lease=600").json["receipt"]
    for method, path, document in [
        ("POST", "/messages/ack", {"receipts": [receipt]}),
        ("POST", "/transactions", {"ack": [receipt], "send": [{"queue": queue, "text": "x"}]}),
        ("PATCH", f"/messages/{receipt}", {"lease": 0}),
        ("PUT", f"/queues/{queue}", {"paused": True}),
    ]:
        body = json.dumps(document).encode()
        sent = request(method, path, body, {"Content-Length": str(len(body) + 1)})
        (reply,) = talk(service, sent, fin=True)
        assert_refused(reply, 400)
    document = ask(service, "GET", f"/queues/{queue}").json
    assert (document["stats"]["leased"], document["stats"]["sent"], document["settings"]["paused"]) == (1, 1, False)


# Row 16: endless bodies.


def worker_of(service: LiveServer) -> int:
    (worker,) = service.workers
    return worker


def peak_memory(pid: int) -> int:
    """Return the process's peak memory in bytes since `forget_peak`."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def open_files(pid: int) -> set[str]:
    names = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the file was closed meanwhile
            names.add(os.readlink(link))
    return {name for name in names if name.startswith("/")}


needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")


@needs_proc
def test_row_16_a_body_declared_as_a_gigabyte_is_refused_and_takes_no_memory(service: LiveServer, route: str) -> None:
    worker = worker_of(service)
    forget_peak(worker)
    before = peak_memory(worker)
    for length in [MAX_BODY + 1, 10**9, 10**30, 10**1_000]:
        for sent in (b"", b"x" * 4_000_000):  # only a part of each is sent
            message = request("POST", route, sent, {"Content-Type": "text/plain", "Content-Length": str(length)})
            replies = talk(service, message, fin=True)
            assert_refused(replies[0], 413)
            assert len(replies) == 1
    assert peak_memory(worker) - before < 8 * MAX_BODY


@needs_proc
def test_row_16_chunks_without_end_are_cut_off_and_take_no_memory(service: LiveServer, route: str) -> None:
    worker = worker_of(service)
    forget_peak(worker)
    before = peak_memory(worker)
    for size in (65_536, 16, 3_000_000):
        chunk = chunked(b" " * size) * max(1, 65_536 // size)
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
            connection.sendall(request("POST", route, headers=CHUNKED))
            sent, most = 0, 200 * MAX_BODY
            with suppress(BrokenPipeError, ConnectionResetError):
                while sent < most:
                    connection.sendall(chunk)
                    sent += len(chunk)
            assert sent < most, "the service has not stopped it"
    assert peak_memory(worker) - before < 16 * MAX_BODY


def test_row_16_chunks_beyond_the_limit_are_answered_413(service: LiveServer, route: str) -> None:
    most = b"x" * MAX_BODY
    headers = CHUNKED | {"Content-Type": "text/plain"}
    (reply,) = talk(service, request("POST", route, chunked(most, b"x") + b"0\r\n\r\n", headers))
    assert_refused(reply, 413)


@needs_proc
def test_row_16_a_large_body_under_way_is_in_no_file(service: LiveServer, route: str) -> None:
    worker = worker_of(service)
    ask(service, "POST", route, b"nonsense")
    before, files = open_files(worker), sorted(service.directory.iterdir())
    for headers, body in [
        ({"Content-Length": str(MAX_BODY)}, b" " * (MAX_BODY - 1)),
        (CHUNKED, chunked(b" " * (MAX_BODY - 1))),
    ]:
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
            connection.sendall(request("POST", route, body, headers))
            until_read(connection)
            assert open_files(worker) <= before
            assert sorted(service.directory.iterdir()) == files
            (reply,) = answers(connection, fin=True)
            assert_refused(reply, 400)


def until_read(connection: socket.socket) -> None:
    """Wait until the service has read all that was sent on the connection."""
    deadline = time.monotonic() + 10
    while struct.unpack("i", _unsent(connection))[0] and time.monotonic() < deadline:
        time.sleep(0.002)


def _unsent(connection: socket.socket) -> bytes:
    return fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0\0\0\0")


# Row 17: invalid JSON, and unusual valid JSON.


NO_JSON = {
    "nothing": b"",
    "depth 100,000": b"[" * 100_000,
    "depth 100,000, closed": b"[" * 100_000 + b"]" * 100_000,
    "objects 100,000 deep": b'{"text":' * 100_000,
    "depth in attributes": b'{"text":"x","attributes":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "NaN": b'{"text":"x","attributes":{"a":NaN}}',
    "Infinity": b'{"text":"x","ttl":Infinity}',
    "-Infinity": b'{"text":"x","delay":-Infinity}',
    "a name twice": b'{"text":"x","text":"y"}',
    "a name twice inside": b'{"text":"x","attributes":{"a":1,"a":1}}',
    "a name twice, escaped": b'{"text":"x","attributes":{"a":1,"\\u0061":1}}',
    "a lone surrogate": b'{"text":"\\ud800"}',
    "a lone low surrogate": b'{"text":"a\\udc00b"}',
    "surrogates swapped": b'{"text":"\\udc00\\ud800"}',
    "a surrogate as a name": b'{"text":"x","\\ud800":1}',
    "a surrogate as an attribute": b'{"text":"x","attributes":{"\\udfff":1}}',
    "a surrogate in UTF-8": b'{"text":"\xed\xa0\x80"}',
    "a raw NUL": b'{"text":"\0"}',
    "a raw line feed": b'{"text":"a\nb"}',
    "a NUL behind": b'{"text":"x"}\0',
    "bad UTF-8": b'{"text":"\xff"}',
    "overlong UTF-8": b'{"text":"\xc0\x80"}',
    "cut UTF-8": b'{"text":"\xe2\x82"}',
    "above Unicode": b'{"text":"\xf5\x80\x80\x80"}',
    "a BOM": b'\xef\xbb\xbf{"text":"x"}',
    "UTF-16": '{"text":"x"}'.encode("utf-16"),
    "UTF-32": '{"text":"x"}'.encode("utf-32-le"),
    "10,000 digits": b'{"text":"x","attributes":{"a":' + b"9" * 10_000 + b"}}",
    "minus 10,000 digits": b'{"text":"x","attributes":{"a":-' + b"9" * 10_000 + b"}}",
    "10,000 digits as a priority": b'{"text":"x","priority":' + b"9" * 10_000 + b"}",
    "4,000 digits as a ttl": b'{"text":"x","ttl":' + b"9" * 4_000 + b"}",
    "1e400": b'{"text":"x","attributes":{"a":1e400}}',
    "-1e400": b'{"text":"x","attributes":{"a":-1e400}}',
    "a huge exponent": b'{"text":"x","attributes":{"a":1e999999999999}}',
    "1e400 as a delay": b'{"text":"x","delay":1e400}',
    "a vanishing ttl": b'{"text":"x","ttl":1e-400}',
    "a leading zero": b'{"text":"x","priority":01}',
    "a plus": b'{"text":"x","priority":+1}',
    "hexadecimal": b'{"text":"x","priority":0x1}',
    "a bare point": b'{"text":"x","delay":1.}',
    "two values": b'{"text":"x"}{"text":"y"}',
    "a comma too many": b'{"text":"x",}',
    "a comment": b'{"text":"x"}//',
    "single quotes": b"{'text':'x'}",
    "no quotes": b'{text:"x"}',
    "a bad escape": b'{"text":"\\x41"}',
    "a short escape": b'{"text":"\\u12"}',
    "a form": b"text=x",
    "no-break space": b'\xc2\xa0{"text":"x"}',
    "vertical tab": b'\x0b{"text":"x"}',
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON.keys())
def test_row_17_invalid_json_stores_nothing(service: LiveServer, route: str, body: bytes) -> None:
    assert_refused(ask(service, "POST", route, body), 400)
    assert_refused(ask(service, "POST", route, b'[{"text":"a"},' + body + b"]"), 400)
    line = body.replace(b"\n", b"\0")
    ndjson = b'{"text":"a"}\n' + line + b'\n{"text":"b"}'
    assert_refused(ask(service, "POST", route, ndjson, {"Content-Type": "application/x-ndjson"}), 400)


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON.keys())
def test_row_17_invalid_json_is_refused_by_every_route(service: LiveServer, route: str, body: bytes) -> None:
    queue = route.removesuffix("/messages")
    for method, target in [
        ("PUT", queue),
        ("PATCH", f"{route}/x"),
        ("POST", "/messages/ack"),
        ("POST", "/transactions"),
        ("POST", f"{queue}/redrive"),
    ]:
        if body or not target.endswith("redrive"):
            assert_refused(ask(service, method, target, body), 400)


@pytest.mark.parametrize("body", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"caf\xe9"])
def test_row_17_a_plain_text_that_is_not_utf_8_stores_nothing(service: LiveServer, route: str, body: bytes) -> None:
    assert_refused(ask(service, "POST", route, body, {"Content-Type": "text/plain"}), 400)


LONE = json.dumps("\ud800")


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("POST", "/messages/ack", f'{{"receipts": [{LONE}]}}'),
        ("POST", "/messages/ack", f'{{"receipts": [], {LONE}: 1}}'),
        ("POST", "/transactions", f'{{"ack": [{LONE}]}}'),
        ("POST", "/transactions", f'{{"send": [{{"text": "x", "queue": {LONE}}}]}}'),
        ("POST", "/transactions", f'{{"send": [{{"text": "x", {LONE}: 1}}]}}'),
        ("POST", "/transactions", f'{{"receive": {{"queue": {LONE}}}}}'),
        ("POST", "/transactions", f'{{"receive": {{"recipient": {LONE}}}}}'),
        ("POST", "/transactions", f'{{"receive": {{{LONE}: 1}}}}'),
        ("PATCH", "/messages/x", f'{{"dead": true, "reason": {LONE}}}'),
        ("PATCH", "/messages/x", f'{{"lease": 0, {LONE}: 1}}'),
        ("PUT", "/queues/never", f'{{"dead_letter_queue": {LONE}}}'),
        ("PUT", "/queues/never", f'{{{LONE}: 1}}'),
        ("POST", "/queues/never/redrive", f'{{{LONE}: 1}}'),
    ],
)  # fmt: skip
def test_row_17_a_lone_surrogate_anywhere_is_refused(
    service: LiveServer, route: str, method: str, target: str, body: str
) -> None:
    reply = ask(service, method, target, body.encode())
    if reply.status == 200:
        assert reply.json["missing"] == ["\ud800"]
    else:
        assert_refused(reply, 400, 409)


HARD_BUT_GOOD = {
    "NUL": b'{"text":"\\u0000a\\u0000"}',
    "an escaped pair": b'{"text":"\\ud83d\\ude00"}',
    "noncharacters": b'{"text":"\\uffff\\ufffe\\ufdd0"}',
    "a BOM inside": b'{"text":"\\ufeffx"}',
    "line separators": b'{"text":"\\r\\n\\u0085\\u2028\\u2029\\f\\u001f\\u007f"}',
    "an escaped slash": b'{"text":"\\/"}',
    "not normalised": b'{"text":"e\xcc\x81\xc3\xa9"}',
    "looks like SQL": b'{"text":"\'; DROP TABLE messages; --"}',
    "looks like JSON": b'{"text":"{\\"text\\": \\"x\\"}"}',
    "-0": b'{"text":"x","attributes":{"a":-0,"b":-0.0}}',
    "large numbers": b'{"text":"x","attributes":{"a":1e308,"b":-1.7976931348623157e308,"c":123456789012345678901}}',
    "small numbers": b'{"text":"x","attributes":{"a":5e-324,"b":2.2250738585072014e-308}}',
    "4,000 digits": b'{"text":"x","attributes":{"a":' + b"7" * 4_000 + b"}}",
    "exponents": b'{"text":"x","attributes":{"a":1E5,"b":1e-5,"c":1e0,"d":12.5e+3}}',
    "odd names": b'{"text":"x","attributes":{"":1,"\\u0000":2,"a.b":3,"__proto__":4,"\xc3\xa9":5}}',
    "white space": b' \t\r\n{ "text" : "x" }\n\t\r ',
    "names of ours": b'{"text":"x","attributes":{"id":"1","receipt":"x","text":"y"}}',
}


@pytest.mark.parametrize("body", HARD_BUT_GOOD.values(), ids=HARD_BUT_GOOD.keys())
@pytest.mark.parametrize("query", ["", "?limit=2", "?lease=60"])
def test_row_17_unusual_but_valid_json_comes_back_exactly(
    service: LiveServer, queue: str, body: bytes, query: str
) -> None:
    target = f"/queues/{queue}/messages"
    assert exact(ask(service, "POST", target, body).body) | {"id": 0} == exact(body) | {"id": 0}
    document = exact(ask(service, "GET", target + query).body)
    (message,) = document if isinstance(document, list) else [document]
    assert {name: value for name, value in message.items() if name in exact(body)} == exact(body)


@pytest.mark.parametrize("number", ["1e-400", "-1e-400", "4.9e-325", "0.0e-999"])
def test_row_17_a_number_too_small_comes_back_exactly_or_is_refused(
    service: LiveServer, queue: str, number: str
) -> None:
    target = f"/queues/{queue}/messages"
    body = f'{{"text":"x","attributes":{{"a":{number}}}}}'.encode()
    reply = ask(service, "POST", target, body)
    if reply.status == 200:
        assert exact(ask(service, "GET", target).body) == exact(body)
    else:
        assert_refused(reply, 400)


def exact(body: bytes) -> Any:
    """Parse JSON and keep its numbers as written, with all digits."""
    return json.loads(body, parse_int=Decimal, parse_float=Decimal)


# Row 18: queries.


QUERIES = [
    "%ff", "limit=%ff", "lease=%FF", "wait=%c3%28", "queue=%ff", "recipient=%ed%a0%80", "%ff=1", "limit=%",
    "limit=%1", "limit=%zz", "limit", "limit=", "lease=", "wait=", "queue=", "recipient=", "=", "=1", "&", "&&",
    "limit=1&", "&limit=1", "limit=1;lease=5", "x" * 5_000, "limit=" + "1" * 5_000, "queue=" + "a" * 5_000,
    "recipient=" + "a" * 5_000, "a=" + "b" * 5_000, "&".join(["queue=a"] * 500),
    "&".join(f"q{number}=1" for number in range(500)), "queue=../default", "queue=..%2Fdefault", "queue=%2e%2e",
    "queue=default/..", "queue=/default", "queue=default%00", "queue=default%0a", "queue=*", "queue=default,other",
    "queue[]=default", "Queue=default", "queue=%20default", "queue=d%C3%A9fault", "limit=1&limit=1",
    "lease=5&lease=5", "wait=0&wait=0", "recipient=a&recipient=b", "limit=1&limit=2", "limit=1&colour=red",
    "timeout=5", "Limit=1", "limit%00=1", " limit=1".replace(" ", "%20"), "visibility=5", "after=%00",
    "prefix=/", "before=x", "recipients=all", "recipients=any&recipients=any",
    "limit=1?lease=5", "lease=1e3", "lease=%2B5", "wait=0x1", "limit=%EF%BC%91", "lease=NaN", "wait=Infinity",
    "wait=-0", "limit=1.0", "lease=5,0", "lease=5%20", "lease=%0a5", "lease=default%00", "limit='1'", "limit=null",
    "limit=true",
]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
def test_row_18_a_bad_query_is_refused_and_changes_no_queue(service: LiveServer, route: str, query: str) -> None:
    peek = route.removesuffix("messages") + "peek"
    for method, target in [
        ("GET", "/messages"),
        ("GET", route),
        ("GET", "/queues"),
        ("POST", route),
        ("DELETE", f"{route}/x"),
        ("DELETE", route.removesuffix("/messages")),
        ("POST", peek.removesuffix("peek") + "purge"),
    ]:
        assert_refused(ask(service, method, f"{target}?{query}", GOOD if method == "POST" else b""), 400)
    assert_refused(ask(service, "GET", f"{peek}?{query}"), 400)


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", ".", "%2e", "a%2Fb", "..%2Fdefault", "a%5Cb", "*", "x" * 5_000, "%00"]
)
def test_row_18_a_bad_queue_name_in_the_path_changes_no_queue(service: LiveServer, route: str, name: str) -> None:
    for method, path in [("GET", "/messages"), ("POST", "/messages"), ("PUT", ""), ("DELETE", ""), ("POST", "/purge")]:
        assert_refused(ask(service, method, f"/queues/{name}{path}", GOOD if path == "/messages" else b"{}"), 400, 404)


def test_row_18_a_query_longer_than_a_request_line_is_refused(service: LiveServer, route: str) -> None:
    (reply,) = talk(service, request("GET", f"{route}?recipient={'x' * 10_000}"))
    assert reply.status == 414


# Row 19: requests that two servers would read differently.


def framed(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


END = chunked(GOOD) + b"0\r\n\r\n"
POST = ["POST {route} HTTP/1.1", "Host: queue"]
LENGTH = f"Content-Length: {len(GOOD)}"
MALFORMED = {
    "CL and TE": framed(*POST, LENGTH, "Transfer-Encoding: chunked", body=END),
    "TE and CL": framed(*POST, "Transfer-Encoding: chunked", "Content-Length: 4", body=END),
    "CL 0 and TE": framed(*POST, "Content-Length: 0", "Transfer-Encoding: chunked", body=END),
    "CL twice": framed(*POST, LENGTH, LENGTH, body=GOOD),
    "CL twice, different": framed(*POST, "Content-Length: 0", LENGTH, body=GOOD),
    "CL as a list": framed(*POST, f"{LENGTH}, {len(GOOD)}", body=GOOD),
    "CL with a sign": framed(*POST, LENGTH.replace(": ", ": +"), body=GOOD),
    "CL negative": framed(*POST, "Content-Length: -1", body=GOOD),
    "CL hexadecimal": framed(*POST, "Content-Length: 0x14", body=GOOD),
    "CL with an underscore": framed(*POST, "Content-Length: 2_0", body=GOOD),
    "CL a fraction": framed(*POST, "Content-Length: 20.0", body=GOOD),
    "CL a superscript": framed(*POST, "Content-Length: \xb2", body=GOOD),
    "CL empty": framed(*POST, "Content-Length:", body=GOOD),
    "CL of 5,000 digits": framed(*POST, "Content-Length: " + "9" * 5_000, body=GOOD),
    "TE twice": framed(*POST, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=END),
    "TE chunked, chunked": framed(*POST, "Transfer-Encoding: chunked, chunked", body=END),
    "TE unknown": framed(*POST, "Transfer-Encoding: xchunked", body=END),
    "TE identity": framed(*POST, "Transfer-Encoding: identity", LENGTH, body=GOOD),
    "TE empty": framed(*POST, "Transfer-Encoding:", LENGTH, body=GOOD),
    "TE gzip, chunked": framed(*POST, "Transfer-Encoding: gzip, chunked", body=END),
    "TE gzip and chunked": framed(*POST, "Transfer-Encoding: gzip", "Transfer-Encoding: chunked", body=END),
    "TE chunked, gzip": framed(*POST, "Transfer-Encoding: chunked, gzip", body=END),
    "TE with a tab": framed(*POST, "Transfer-Encoding:\x0bchunked", body=END),
    "TE with a space before the colon": framed(*POST, "Transfer-Encoding : chunked", body=END),
    "TE in HTTP/1.0": framed("POST {route} HTTP/1.0", "Host: queue", "Transfer-Encoding: chunked", body=END),
    "a folded header": framed(*POST, "X: a", " b: c", LENGTH, body=GOOD),
    "a header without a colon": framed(*POST, "nonsense", LENGTH, body=GOOD),
    "a header without a name": framed(*POST, ": x", LENGTH, body=GOOD),
    "a space in a name": framed(*POST, "Content Length: 5", LENGTH, body=GOOD),
    "a NUL in a header": framed(*POST, "X: a\0b", LENGTH, body=GOOD),
    "a CR in a header": framed(*POST, "X: a\rContent-Length: 5", LENGTH, body=GOOD),
    "a LF in a header": framed(*POST, "X: a\nContent-Length: 5", LENGTH, body=GOOD),
    "bare LFs": framed(*POST, LENGTH, body=GOOD).replace(b"\r\n", b"\n") + b"\r\n\r\n",
    "Host twice": framed(*POST, "Host: other", LENGTH, body=GOOD),
    "no version": framed("POST {route}", "Host: queue", LENGTH, body=GOOD),
    "HTTP/2.0": framed("POST {route} HTTP/2.0", "Host: queue", LENGTH, body=GOOD),
    "HTTP/9.9": framed("POST {route} HTTP/9.9", "Host: queue", LENGTH, body=GOOD),
    "HTTP/1.1 twice": framed("POST {route} HTTP/1.1 HTTP/1.1", "Host: queue", LENGTH, body=GOOD),
    "two spaces": framed("POST  {route} HTTP/1.1", "Host: queue", LENGTH, body=GOOD),
    "a small method": framed("post {route} HTTP/1.1", "Host: queue", LENGTH, body=GOOD),
    "raw bytes in the path": framed("POST {route}\xff HTTP/1.1", "Host: queue", LENGTH, body=GOOD),
    "a NUL in the path": framed("POST {route}\0 HTTP/1.1", "Host: queue", LENGTH, body=GOOD),
    "no path": framed("POST HTTP/1.1", "Host: queue", LENGTH, body=GOOD),
    "a path without a slash": framed("POST messages HTTP/1.1", "Host: queue", LENGTH, body=GOOD),
    "101 headers": framed(*POST, *(f"X-{number}: 1" for number in range(101)), LENGTH, body=GOOD),
    "a header of 10,000 bytes": framed(*POST, "X: " + "x" * 10_000, LENGTH, body=GOOD),
    "an unknown expectation": framed(*POST, "Expect: a miracle", LENGTH, body=GOOD),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) + b"\r\n\r\n",
    "zeros": b"\0" * 5_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED.keys())
def test_row_19_a_malformed_request_is_refused_and_bytes_after_it_are_not_run(
    service: LiveServer, route: str, sent: bytes
) -> None:
    follows = request("POST", route, GOOD)
    (reply,) = talk(service, sent.replace(b"{route}", route.encode()) + follows, fin=True)
    assert 400 <= reply.status < 500 or reply.status == 501


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("CL and TE", 400),
        ("two spaces", 400),
        ("HTTP/9.9", 400),
        ("an unknown expectation", 417),
        ("a header of 10,000 bytes", 431),
        ("TE unknown", 501),
    ],
)
def test_row_19_a_request_that_gunicorn_refuses_gets_a_problem_document(
    service: LiveServer, route: str, name: str, status: int
) -> None:
    (reply,) = talk(service, MALFORMED[name].replace(b"{route}", route.encode()))
    assert_refused(reply, status)
    assert len(reply.body) == int(reply.headers["content-length"])
    assert reply.headers["cache-control"] == "no-store"


CHUNKS = {
    "a sign": b"+14\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "a minus": b"-14\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "0x": b"0x14\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "an underscore": b"1_4\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "no size": b"\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "a word": b"zz\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "a space before": b" 14\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "a space behind": b"14 \r\n" + GOOD + b"\r\n0\r\n\r\n",
    "bare LFs": b"14\n" + GOOD + b"\n0\n\n",
    "a size too small": b"13\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "a size too large": b"15\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "an endless size": b"1" * 9_000 + b"\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "a huge size": b"FFFFFFFFFFFFFFFFFFFF\r\n" + GOOD,
    "a LF in an extension": b"14;a=b\nc\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "an open quote in an extension": b'14;a="b\r\n' + GOOD + b"\r\n0\r\n\r\n",
    "a trailer without a colon": b"14\r\n" + GOOD + b"\r\n0\r\nnonsense\r\n\r\n",
    "a Content-Length as a trailer": b"14\r\n" + GOOD + b"\r\n0\r\nContent-Length: 5\r\n\r\n",
    "endless trailers": b"14\r\n" + GOOD + b"\r\n0\r\n" + b"X: x\r\n" * 200_000,
}


@pytest.mark.parametrize("body", CHUNKS.values(), ids=CHUNKS.keys())
def test_row_19_malformed_chunks_store_nothing_and_bytes_after_them_are_not_run(
    service: LiveServer, route: str, body: bytes
) -> None:
    follows = request("POST", route, GOOD)
    replies = talk(service, request("POST", route, body, CHUNKED, last=False) + follows, fin=True)
    assert len(replies) == 1
    assert_refused(replies[0], 400, 413)


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "OPTIONS", "DELETE", "PUT"])
def test_row_19_a_request_within_a_refused_body_is_not_run(service: LiveServer, route: str, method: str) -> None:
    inner = request("POST", route, GOOD)
    for headers, body in [
        ({"Content-Length": str(MAX_BODY * 100)}, inner),
        ({"Content-Length": str(len(inner))}, inner),
        (CHUNKED, chunked(b"x" * (MAX_BODY + 1)) + chunked(inner)),
        (CHUNKED, chunked(inner) + b"0\r\n\r\n"),
    ]:
        target = "/nowhere" if method == "DELETE" else f"{route}?colour=red"
        replies = talk(service, request(method, target, body, headers, last=False), fin=True)
        assert [reply.status for reply in replies] in ([400], [404], [405], [413], [204])


def test_row_19_a_valid_request_after_a_refused_one_is_answered_in_its_turn(service: LiveServer, queue: str) -> None:
    target = f"/queues/{queue}/messages"
    sent = b"".join(
        request(*parts, last=False)
        for parts in [
            ("POST", target, b"nonsense"),
            ("POST", target, GOOD),
            ("GET", "/nowhere", b""),
            ("BREW", target, b"x"),
        ]
    )
    replies = talk(service, sent + request("GET", target))
    assert [reply.status for reply in replies] == [400, 200, 404, 405, 200]
    assert replies[-1].json == {"text": "intruder"}


# Row 23: an internal error.


EVERY_ROUTE = [
    ("POST", "/messages", GOOD, "send"),
    ("GET", "/messages", b"", "receive"),
    ("DELETE", "/messages/x", b"", "settle"),
    ("PATCH", "/messages/x", b'{"lease": 60}', "extend"),
    ("PATCH", "/messages/x", b'{"lease": 0}', "release"),
    ("PATCH", "/messages/x", b'{"dead": true}', "reject"),
    ("POST", "/messages/ack", b'{"receipts": ["x"]}', "ack"),
    ("POST", "/transactions", b'{"ack": []}', "transact"),
    ("GET", "/queues", b"", "queues"),
    ("GET", "/queues/jobs", b"", "queue"),
    ("PUT", "/queues/jobs", b"{}", "configure"),
    ("DELETE", "/queues/jobs", b"", "delete_queue"),
    ("GET", "/queues/jobs/peek", b"", "peek"),
    ("POST", "/queues/jobs/purge", b"", "purge"),
    ("POST", "/queues/jobs/redrive", b"", "redrive"),
    ("GET", "/ready", b"", "check_ready"),
]


def fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("secret: SELECT * FROM messages in /srv/queue.db")


@pytest.mark.parametrize(("method", "target", "body", "verb"), EVERY_ROUTE)
def test_row_23_an_internal_error_is_a_500_with_a_reference_to_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str, target: str, body: bytes, verb: str
) -> None:
    with a_store() as store, caplog.at_level(logging.ERROR):
        monkeypatch.setattr(store, verb, fail)
        reply = Client(handler.make_app(Settings(), store)).call(method, target, body)
    assert_internal_error(reply, caplog)


def test_row_23_an_error_while_answering_is_a_500(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with a_store() as store, caplog.at_level(logging.ERROR):
        monkeypatch.setattr(responses, "problem", once(responses.problem))
        reply = Client(handler.make_app(Settings(), store)).call("POST", "/messages", b"nonsense")
    assert_internal_error(reply, caplog)


def once(real: Callable[..., Any]) -> Callable[..., Any]:
    """Fail at the first call only."""
    calls = itertools.count()
    return lambda *args, **kwargs: real(*args, **kwargs) if next(calls) else fail()


def assert_internal_error(reply: Reply, log: pytest.LogCaptureFixture) -> None:
    assert (reply.status, reply.json["code"]) == (500, "internal_error")
    assert b"secret" not in reply.body
    reference = reply.json["detail"].split(" ")[-1]
    assert len(reference) == 16
    (record,) = [record for record in log.records if reference in record.getMessage()]
    assert record.exc_info
    assert record.exc_info[1]
    assert "secret" in str(record.exc_info[1])


def test_row_23_a_broken_database_is_reported_without_internal_details() -> None:
    with LiveServer({"WEB_CONCURRENCY": "1"}) as service:
        with closing(apsw.Connection(str(service.database))) as database:
            database.execute("ALTER TABLE queues RENAME TO gone")
        for method, target, body, _ in EVERY_ROUTE:
            reply = ask(service, method, target, body)
            if reply.status >= 500:
                assert_refused(reply, 500, 503)
                assert "gone" not in reply.json["detail"]
            if reply.status == 500:
                assert reply.json["detail"].split(" ")[-1] in service.log()
        assert_refused(ask(service, "POST", "/messages", GOOD), 500, 503)
        assert_refused(ask(service, "GET", "/queues"), 500, 503)
        assert ask(service, "GET", "/health").status == 200


# All of these: many random bad requests, the same ones in every run.


def bad_requests(route: str, chance: random.Random) -> Iterator[tuple[bytes, bool]]:
    """Yield bad requests without end; True: the request needs the client's FIN to end."""
    document = {"text": "intruder é", "priority": 3, "attributes": {"a": [1.5, None]}}
    good = json.dumps(document, ensure_ascii=False).encode()
    kinds = ["application/json", "application/x-ndjson", "", "application/x-www-form-urlencoded"]
    writes = ["/messages", route, "/messages/ack", "/transactions", f"{route}/ack"]
    while True:
        place = chance.randrange(len(good))
        broken = chance.choice(
            [
                good[:place],
                good[:place] + bytes([chance.choice([0xFF, 0xC0, 0xF8])]) + good[place:],
                good[:place] + good[place + 1 :] + b"\0",
                bytes(chance.randrange(128, 192) for _ in range(1 + place)),
                good + good,
                good,
                b'{"text": ' + str(chance.random()).encode() + b"}",
                json.dumps({"text": "x", "".join(chance.choices("abxyz\0é", k=6)): 1}).encode(),
                json.dumps({"text": "x", "priority": chance.choice([-1, 10, 0.5, "1", [], {}])}).encode(),
                b"[" * chance.randrange(1, 5_000),
            ]
        )
        target = chance.choice(writes)
        path = chance.choice(PATHS)
        end = chance.choice([b"", b"0", b"0\r\n", b"-1\r\n\r\n"])
        garbage = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 300)))
        yield request("POST", target, broken, {"Content-Type": chance.choice(kinds)}), False
        yield request("POST", target, broken, {"Content-Length": str(len(broken) + 1 + place)}), True
        yield request("POST", target, (chunked(broken) if broken else b"") + end, CHUNKED), True
        yield request("GET", f"{chance.choice([route, '/messages'])}?{chance.choice(QUERIES)}"), False
        yield request("GET", f"{route}?limit={chance.choice(['-', '', '%'])}{chance.randrange(2_000)}x"), False
        yield (
            request(chance.choice(["HEAD", "BREW", "PUT", "TRACE", "DELETE"]), chance.choice([route, "/messages"])),
            False,
        )
        yield request(chance.choice(["GET", "POST", "DELETE"]), path.replace("/messages", route), b"intruder"), False
        yield chance.choice(list(MALFORMED.values())).replace(b"{route}", route.encode()), False
        yield garbage + b"\r\n\r\n", False


@pytest.mark.parametrize(
    ("count", "seed"),
    [
        pytest.param(600, 19, id="600"),
        pytest.param(20_000, random.SystemRandom().randrange(2**32), marks=LONG, id="20,000"),
    ],
)
def test_bad_requests_leave_the_queues_as_they_were__row_16__row_17__row_18__row_19(
    count: int, seed: int, service: LiveServer, route: str, add_row: AddRow
) -> None:
    """The seed of the long form is random; it is in the table of figures."""
    before, answered = all_queues(service), Counter[int]()
    accepted: list[bytes] = []
    for sent, unfinished in itertools.islice(bad_requests(route, random.Random(seed)), count):
        replies = talk(service, sent if unfinished else sent + request("POST", route, GOOD), fin=unfinished)
        answered.update(reply.status for reply in replies)
        if len(replies) != 1 or replies[0].status < 400:
            accepted.append(sent)
    after = all_queues(service)
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    failed = sum(times for status, times in answered.items() if status >= 500 and status != 501)
    add_row(
        bad_requests=f"raw sockets, seed {seed}", tried=count, **{"5xx": failed},
        accepted=len(accepted), queues_changed=len(changed),
    )  # fmt: skip
    assert (failed, accepted, changed) == (0, [], [])  # 501 is the status for an unknown transfer coding


def test_a_request_with_a_changed_byte_is_stored_only_if_the_reply_says_so__row_17__row_19(
    service: LiveServer, queue: str
) -> None:
    chance = random.Random(17)
    target = f"/queues/{queue}/messages"
    good = request("POST", target, json.dumps({"text": "intruder", "priority": 3}).encode(), {"Idempotency-Key": "k"})
    stored = 0
    before = sum(stats["sent"] for stats in all_queues(service).values())
    for number in range(400):
        place = chance.randrange(len(good))
        changed = good[:place] + bytes([chance.randrange(256)]) + good[place + chance.randrange(2) :]
        changed = changed.replace(b"Key: k", b"Key: %d" % number)
        replies = talk(service, changed, fin=True)
        assert all(reply.status < 500 or reply.status == 501 for reply in replies), (changed, replies)
        stored += sum(reply.status == 200 for reply in replies)
    assert 0 < stored < 200
    assert sum(stats["sent"] for stats in all_queues(service).values()) - before == stored


# Any Unicode comes back exactly, on every way in and out.


UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = UNICODE | st.integers(-(10**40), 10**40) | FINITE | st.booleans() | st.none()
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "key": NAMES,
    "priority": st.integers(0, 9),
    "attributes": st.dictionaries(UNICODE, VALUES, max_size=4),
    "delay": st.sampled_from([0, 0.0]),
    "ttl": st.integers(60, 10**8) | st.floats(60, 1e8),
    "dedup_id": NAMES,
}
MESSAGES: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.fixed_dictionaries({"text": UNICODE}, optional=FIELDS),
    min_size=1,
    max_size=3,
    unique_by=lambda message: message.get("dedup_id", id(message)),
)
ODD = ["\0", "\0a\0b", "\uffff\ufdd0\U0010ffff", "", "\ufeff", '"\\/\b\f\n\r\t\x7f\x85\u2028', "\\u0000", "e\u0301é"]
numbers = itertools.count()


@pytest.fixture(scope="module")
def store() -> Iterator[Engine]:
    with a_store() as store:
        yield store


@pytest.mark.parametrize("way_in", ["one by one", "array", "ndjson"])
@pytest.mark.parametrize("way_out", ["plain", "array", "ndjson", "leased", "leased array", "peek"])
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@example(messages=[{"text": text} for text in ODD], recipient=None, escaped=False)
@example(messages=[{"text": text, "attributes": {text: text}} for text in ODD], recipient=None, escaped=True)
@example(messages=[{"text": text, "key": text, "dedup_id": text} for text in ODD[:3]], recipient="\0", escaped=False)
@given(messages=MESSAGES, recipient=st.none() | NAMES, escaped=st.booleans())
def test_any_message_comes_back_exactly(
    store: Engine, way_in: str, way_out: str, messages: list[dict[str, Any]], recipient: str | None, escaped: bool
) -> None:
    client = Client(handler.make_app(Settings(), store))
    queue = f"/queues/any-{next(numbers)}"
    if recipient is not None:
        messages = [message | {"recipient": recipient} for message in messages]
    ids = write(client, queue, way_in, messages, escaped)
    messages_read = read(client, queue, way_out, recipient, len(messages))
    by_id = dict(zip(ids, messages, strict=True))
    if way_out in ("array", "ndjson"):
        assert sorted(map(shape, messages_read)) == sorted(map(shape, messages))
    else:
        expected = [by_id[message.pop("id_read")] for message in messages_read]
        assert [shape(message) for message in messages_read] == [shape(message) for message in expected]
        assert len(messages_read) == len(messages)


def write(client: Client, queue: str, way: str, messages: list[dict[str, Any]], escaped: bool) -> list[str]:
    """Send the messages and return their ids."""
    encoded = [json.dumps(message, ensure_ascii=escaped).encode() for message in messages]
    if way == "one by one":
        replies = [client.call("POST", f"{queue}/messages", body).json for body in encoded]
        assert [shape(reply) for reply in replies] == [
            shape(message | {"id": reply["id"]}) for message, reply in zip(messages, replies, strict=True)
        ]
        return [reply["id"] for reply in replies]
    if way == "array":
        reply = client.call("POST", f"{queue}/messages", b"[" + b",".join(encoded) + b"]")
    else:
        reply = client.call("POST", f"{queue}/messages", b"\n".join(encoded), Content_Type="application/x-ndjson")
    ids: list[str] = reply.json["ids"]
    return ids


def read(client: Client, queue: str, way: str, recipient: str | None, count: int) -> list[dict[str, Any]]:
    """Read messages as they were written; add `id_read` if the reply has ids."""
    asked = [] if recipient is None else ["recipient=" + "".join(f"%{byte:02x}" for byte in recipient.encode())]
    accept = "application/x-ndjson" if way == "ndjson" else "*/*"
    if way in ("array", "ndjson"):
        reply = client.get("&".join([f"{queue}/messages?limit=9", *asked]), Accept=accept)
        return reply.lines if way == "ndjson" else list(reply.json)
    if way == "plain":
        replies = [client.get("?".join([f"{queue}/messages", *asked])) for _ in range(count)]
        return [reply.json | {"id_read": reply.headers["message-id"]} for reply in replies]
    if way == "peek":
        return [without_envelope(message) for message in client.get(f"{queue}/peek").json]
    if way == "leased array":
        messages = client.get("&".join([f"{queue}/messages?lease=60&limit=9", *asked])).json
        return [without_envelope(message) for message in messages]
    leased = []
    for _ in range(count):  # each is settled before the next, as messages of one key must be
        message = client.get("&".join([f"{queue}/messages?lease=60", *asked])).json
        assert client.call("DELETE", f"/messages/{message['receipt']}").status == 204
        leased.append(without_envelope(message))
    return leased


def without_envelope(message: dict[str, Any]) -> dict[str, Any]:
    envelope = {"id", "queue", "sent_at", "receive_count", "receipt", "leased_until", "state"}
    return {name: value for name, value in message.items() if name not in envelope} | {"id_read": message["id"]}


def shape(document: dict[str, Any]) -> str:
    """Return a string that is equal only for equal documents: 1, 1.0 and true differ, as do 0.0 and -0.0."""
    return json.dumps(document, sort_keys=True)
