"""Test bodies that need far more memory than their length: refused early, and bounded for the service."""

from __future__ import annotations

import http.client
import itertools
import json
import string
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

import handler
from settings import Settings
from storage.errors import Busy, InvalidInput
from storage.scheduling import Threads
from storage.validation import MAX_BATCH
from tests.support.figures import AddRow
from tests.support.live import LiveServer, await_true
from tests.support.wsgi import Client, a_store
from web.native import budget, decoding
from web.native.budget import MemoryPool
from web.native.decoding import parse_json
from web.native.request import JSON, RUNS, TEXT, BadRequest

SIZE = Settings().max_body
CEILING = 1_000_000_000  # bytes of all processes together, as in docs/operations.md
CLIENTS = 24


def filled(head: str, unit: str, tail: str) -> bytes:
    """Return the largest body of head, repeated units and tail."""
    return (
        f"{head}{unit * ((SIZE - len(head) - len(tail) - 2) // len(unit))}".removesuffix(",").encode() + tail.encode()
    )


def names() -> Iterator[str]:
    return map("".join, itertools.product(string.ascii_letters + string.digits, repeat=4))


def members(count: int, value: str) -> str:
    return ",".join(f'"{name}":{value}' for name in itertools.islice(names(), count))


def repeated(value: str) -> str:
    return f"[{','.join([value] * (MAX_BATCH - 1))}],"


SHAPES: dict[str, Callable[[], bytes]] = {
    "objects": lambda: filled("[", "{},", "]"),
    "arrays": lambda: filled("[", "[],", "]"),
    "arrays for a text": lambda: filled('{"text":[', "[],", "]}"),
    "arrays of objects": lambda: filled("[", repeated("{}"), "]"),
    "arrays of numbers": lambda: filled("[", repeated("1.50"), "]"),
    "arrays of strings": lambda: filled("[", repeated('"ab"'), "]"),
    "members": lambda: f"{{{members(SIZE // 10, '1')}}}".encode(),
    "attributes": lambda: f'{{"text":"","attributes":{{{members(SIZE // 13, "1.50")}}}}}'.encode(),
    "messages of attributes": lambda: filled("[", f'{{"text":"","attributes":{{{members(5_000, "1.50")}}}}},', "]"),
    "receipts": lambda: filled('{"receipts":[', '"q~1~1",', "]}"),
    "a wide text": lambda: f'{{"text":"\U0001f600{"a" * (SIZE - 40)}"}}'.encode(),
    "an escaped wide text": lambda: f'{{"text":"{chr(92)}ud83d{chr(92)}ude00{"a" * (SIZE - 40)}"}}'.encode(),
    "depth": lambda: b"[" * SIZE,
}
RUN = f'{{"texts":["x"],"attributes":{{{members(50_000, "[1]")}}}}}'.encode()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with a_store() as store:
        yield Client(handler.make_app(Settings(), store))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_costly_body_is_answered_and_costs_no_more_than_was_reserved_for_it_row_28(
    client: Client, shape: str
) -> None:
    body = SHAPES[shape]()
    assert len(body) <= SIZE
    route = "/messages/ack" if shape == "receipts" else "/messages"
    assert client.call("POST", route, body).status in (200, 400)


@pytest.mark.parametrize("shape", ["objects", "receipts"])
def test_an_array_is_refused_after_ten_thousand_elements_and_not_at_its_end(shape: str) -> None:
    body = SHAPES[shape]()
    began = time.process_time()
    json.loads(body)
    whole = time.process_time() - began
    began = time.process_time()
    with pytest.raises(InvalidInput, match="at most 10000"):
        parse_json(body)
    assert time.process_time() - began < whole


def test_a_message_of_fifty_thousand_names_is_refused(client: Client) -> None:
    client.post("/queues/default/purge", {})
    assert client.call("POST", "/messages", RUN, Content_Type=RUNS).status == 400
    attributes = f'[{{"text":"x","attributes":{{{members(50_000, "1")}}}}}]'.encode()
    assert client.call("POST", "/messages", attributes).json["field"] == "attributes"
    assert client.get("/messages").status == 204


@pytest.mark.parametrize("many", [0, decoding.MANY])
def test_streaming_and_direct_decoding_agree(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    monkeypatch.setattr(decoding, "MANY", many)
    good = '[{"text": "a, [b]", "attributes": {"n": [1, -2.5e3, null, true], "é": ""}}, { } ,\t{"a":{}}, {"x":"\\n"}]'
    for text in (good, f" \n{good}\r\n", good.replace(" ", ""), "17", '"x"', "null", "[]", "{}", '{"a":[]}'):
        assert parse_json(text.encode()) == json.loads(text)
    bad = ["[{},]", "[{} {}]", '{"a":1,}', '{"a" 1}', "{a:1}", "[", "{", '{"a":', "[{", '"x', "[]x", '{"a":1,"a":2}']
    bad += ['{"a":NaN}', "nul", '[{"a":1,]', '[{"b":1,"b":2}]', '{"a":[,1]}', '{"a":tru}', '{"a":[1}', '{"a":1]']
    for text in bad:
        with pytest.raises((BadRequest, InvalidInput)):
            parse_json(text.encode())


def test_an_impossible_body_is_refused_where_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MANY", 0)
    deep = '{"a":' * decoding.MOST_DEPTH + "{}" + "}" * decoding.MOST_DEPTH
    for text in ("[1, nonsense", "[{}, [], nonsense", '{"a": [[nonsense', deep + "nonsense"):
        with pytest.raises((BadRequest, InvalidInput)) as refused:
            parse_json(text.encode())
        assert "Expecting" not in str(refused.value)


def test_a_read_that_lacked_memory_makes_slow_clients_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "WAIT", 0.05)
    shared = budget.MemoryBudget(1, Threads())
    shared.take(budget.REPLIES, wait=False)
    assert not shared.replies_are_wanted
    with ThreadPoolExecutor(1) as other, pytest.raises(Busy):
        other.submit(shared.take, 1, wait=True).result()
    assert shared.replies_are_wanted


def test_memory_is_reserved_up_to_the_budget_and_other_requests_get_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "WAIT", 0.05)
    pool = MemoryPool(10)
    assert [pool.take(6), pool.take(4)] == [6, 4]
    with pytest.raises(Busy, match="nothing was done"):
        pool.take(1)
    waiting = threading.Thread(target=pool.take, args=[100])  # more than the budget: all of it
    monkeypatch.setattr(budget, "WAIT", 20)
    waiting.start()
    pool.give(6)
    pool.give(4)
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_large_body_without_free_memory_is_busy_and_a_small_one_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "WAIT", 0.05)
    with a_store() as store:
        app = handler.make_app(Settings(), store)
        client = Client(app)
        taken = app.budget._objects.take(budget.OBJECTS)
        large = json.dumps({"text": "x" * 2 * budget.SMALL}).encode()
        reply = client.call("POST", "/messages", large)
        assert (reply.status, reply.json["code"], reply.headers["retry-after"]) == (503, "busy", "1")
        assert client.post("/messages", {"text": "small"}).status == 200
        app.budget._objects.give(taken)
        for _ in range(20):  # a request returns its reservation in every case
            assert client.call("POST", "/messages", large).status == 200
            assert client.call("POST", "/messages", large[:-1]).status == 400
        assert app.budget._objects._free == budget.OBJECTS
        assert app.budget._bodies._free == budget.BODIES


def test_a_large_reply_without_free_memory_is_busy_and_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "WAIT", 0.05)
    with a_store() as store:
        app = handler.make_app(Settings(), store)
        client = Client(app)
        large = "\x01" * 300_000 + "\U0001f600"
        assert client.call("POST", "/messages", large.encode(), Content_Type=TEXT).status == 200
        assert client.post("/queues/small/messages", {"text": "small"}).status == 200
        taken = app.budget._replies.take(budget.REPLIES)
        for target in ("/messages", "/messages?lease=60", "/queues/default/peek"):
            reply = client.get(target)
            assert (reply.status, reply.json["code"], reply.headers["retry-after"]) == (503, "busy", "1")
        assert client.get("/queues/small/messages?limit=10").status == 200
        app.budget._replies.give(taken)
        for _ in range(20):
            assert client.get("/queues/default/peek").json[0]["receive_count"] == 0
            assert client.get("/messages?wait=0.001&queue=none").status == 204
        assert client.get("/messages").json == {"text": large}
        assert app.budget._replies._free == budget.REPLIES


def test_a_large_reply_keeps_its_memory_reserved_until_it_was_sent() -> None:
    budgeted = budget.MemoryBudget(1, Threads())

    def call() -> list[bytes]:
        budgeted.take(100, wait=True)
        budgeted.keep(60)
        return [b"reply"]

    reply = budgeted.run({}, call)
    assert list(reply) == [b"reply"]
    assert budgeted._replies._free == budget.REPLIES - 60
    reply.close()  # type: ignore[attr-defined]  # WSGI calls it where there is one
    assert budgeted._replies._free == budget.REPLIES


@pytest.mark.slow
def test_the_memory_of_the_service_has_a_ceiling_whatever_bodies_come_row_29(add_row: AddRow) -> None:
    attack("all", list(SHAPES), add_row)


@pytest.mark.torture
@pytest.mark.parametrize("shape", SHAPES)
def test_the_memory_of_the_service_has_a_ceiling_with_each_shape_of_body_row_29(shape: str, add_row: AddRow) -> None:
    attack(shape, [shape], add_row)


def attack(name: str, shapes: list[str], add_row: AddRow) -> None:
    """Post these bodies. The service answers each, no worker ends, and its memory stays bounded."""
    bodies = [SHAPES[shape]() for shape in shapes]
    found: Counter[int] = Counter()
    with LiveServer() as server:
        besiege(server, lambda number: post(server.port, bodies[number % len(bodies)], found), name, found, add_row)


def besiege(server: LiveServer, ask: Callable[[int], None], name: str, found: Counter[int], add_row: AddRow) -> None:
    """Let all clients call `ask`, and count the answers in `found`."""
    await_true(lambda: len(server.workers) == Settings().workers)
    workers, before = server.workers, memory(server)
    clients = [threading.Thread(target=ask, args=[number]) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    peak = before
    while any(client.is_alive() for client in clients):
        peak = max(peak, memory(server))
        time.sleep(0.02)
    assert server.workers == workers
    add_row(shape=name, before=f"{before / 1e6:.0f} MB", peak=f"{peak / 1e6:.0f} MB", answers=dict(found))
    assert set(found) <= {200, 400, 503}
    assert sum(found.values()) == CLIENTS
    assert peak < CEILING


def post(port: int, body: bytes, found: Counter[int]) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
            connection.request("POST", "/messages", body, {"Content-Type": "application/json"})
        try:
            found[connection.getresponse().status] += 1
        except ConnectionResetError:  # the reset discarded the answer
            found[503] += 1


# The text that grows most: four bytes in memory and six in JSON for each character.
COSTLY = ("\x01" * 1_400_000 + "\U0001f600").encode()
AT_ONCE = 11  # messages in one read: 16 MiB
READS = {
    "leased": ("GET", f"/queues/leased/messages?lease=600&limit={AT_ONCE}", ""),
    "transaction": ("POST", "/transactions", f'{{"receive": {{"queue": "transaction", "limit": {AT_ONCE}}}}}'),
    "plain": ("GET", f"/queues/plain/messages?limit={AT_ONCE}", ""),
    "peek": ("GET", "/queues/leased/peek", ""),
}


@pytest.mark.slow
def test_the_memory_of_the_service_has_a_ceiling_whatever_is_read_and_nothing_refused_is_taken_row_29(
    add_row: AddRow,
) -> None:
    found: Counter[int] = Counter()
    taken: Counter[str] = Counter()
    kinds = list(READS)

    def ask(number: int) -> None:
        kind = kinds[number % len(kinds)]
        method, target, body = READS[kind]
        accept = RUNS if number % (2 * len(kinds)) < len(kinds) else JSON
        status, texts = call(server.port, method, target, body, {"Accept": accept, "Idempotency-Key": str(number)})
        found[status] += 1
        taken[kind] += texts

    with LiveServer() as server:
        sent = {kind: CLIENTS // len(kinds) * AT_ONCE for kind in kinds if kind != "peek"}
        for queue, count in sent.items():
            for _ in range(count):
                assert call(server.port, "POST", f"/queues/{queue}/messages", COSTLY, {"Content-Type": TEXT})[0] == 200
        besiege(server, ask, "large replies", found, add_row)
        for queue, count in sent.items():
            with urllib.request.urlopen(f"{server.url}/queues/{queue}") as reply:
                stats = json.load(reply)["stats"]
            assert stats["ready"] == count - taken[queue]
            assert stats["received"] == taken[queue]
            assert stats["leased"] == (0 if queue == "plain" else taken[queue])


def call(port: int, method: str, target: str, body: str | bytes, headers: dict[str, str]) -> tuple[int, int]:
    """Return the status and the number of texts in the reply, which is read to its end."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        connection.request(method, target, body, headers)
        reply, texts = connection.getresponse(), 0
        while piece := reply.read(1 << 20):  # raises IncompleteRead for less than was promised
            texts += piece.count(b"\xf0")  # the one wide character in each
        return reply.status, texts


def memory(server: LiveServer) -> int:
    """Return the memory of master and workers in bytes, with shared pages counted for each."""
    pages = 0
    for pid in (server.pid, *server.workers):
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pages * 4096
