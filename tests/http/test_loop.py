"""Many requests run in one thread. Each continues as if it were alone, wherever it waited."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

import handler
from settings import Settings
from storage.errors import Busy
from storage.model import NewMessage, Receive
from storage.sqlite.disk.group_commit import GroupCommit
from storage.sqlite.disk.lock import FileLock
from web.native.budget import REPLIES
from web.server import plain
from web.server.loop import Loop

LONG = 15.0  # seconds


@pytest.fixture
def loop() -> Loop:
    return Loop(ThreadPoolExecutor(4))


def run_until(loop: Loop, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        if loop.turn():
            time.sleep(0.001)


class Service:
    """Run the application on a loop, without sockets; keep its replies in order."""

    def __init__(self, loop: Loop, folder: Path) -> None:
        self.loop = loop
        self.app = handler.make_app(Settings(database_url=f"sqlite:///{folder}/queue.db"))
        self.app.scheduler = loop
        self.replies: dict[str, bytes] = {}

    def begin(self, name: str, method: str, target: str, body: Any = None, **headers: str) -> None:
        """Run a request until it waits; the name is its id."""
        content = b"" if body is None else json.dumps(body).encode()
        fields = {"Host": "q", "X-Request-Id": name, "Content-Length": str(len(content)), **headers}
        lines = [f"{method} {target} HTTP/1.1", *(f"{field}: {value}" for field, value in fields.items())]
        environ = plain.read_head("\r\n".join([*lines, "\r\n"]).encode())
        assert environ is not None
        environ |= {"wsgi.input": io.BytesIO(content), "SERVER_PROTOCOL": "HTTP/1.1"}

        def answer() -> None:
            self.loop.current().on_resume = lambda: self.app.resume(environ)  # type: ignore[attr-defined]
            reply = plain.answer(self.app, environ, lambda: False)
            self.replies[name] = reply.begin + b"".join(reply.rest or ())
            if reply.rest is not None:
                reply.rest.close()  # type: ignore[attr-defined]  # as a WSGI server does

        self.loop.run(answer)

    def finish(self, *names: str) -> list[tuple[str, str]]:
        """Return the id in each reply, and the reply's body."""
        run_until(self.loop, lambda: all(name in self.replies for name in names))
        found = []
        for name in names:
            head, _, body = self.replies.pop(name).decode().partition("\r\n\r\n")
            found.append((head.partition("X-Request-Id: ")[2].partition("\r\n")[0], body.strip()))
        return found


@pytest.fixture
def service(loop: Loop, tmp_path: Path) -> Iterator[Service]:
    service = Service(loop, tmp_path)
    yield service
    service.app.close()


NDJSON = {"Accept": "application/x-ndjson"}


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_requests_that_wait_for_a_commit_at_the_same_time_keep_their_own_requests(
    order: tuple[int, ...], service: Service
) -> None:
    """After its commit, each request still reads its own headers: they choose the form of its reply."""
    service.begin("fill", "POST", "/queues/a/messages", {"text": "a"})
    service.begin("fill too", "POST", "/queues/a/messages", {"text": "b"}, **{"Idempotency-Key": "k"})
    service.finish("fill", "fill too")
    begins: list[Callable[[], None]] = [
        lambda: service.begin("0", "GET", "/queues/a/messages?limit=9", **NDJSON),
        lambda: service.begin("1", "POST", "/queues/b/messages", {"text": "x"}),
        lambda: service.begin("2", "GET", "/queues/c/messages?limit=9"),
        lambda: service.begin("3", "POST", "/transactions", {"send": [{"queue": "d", "text": "y"}]}),
    ]
    for place in order:
        begins[place]()
    assert service.replies == {}  # all of them wait
    replies = service.finish("0", "1", "2", "3")
    assert [name for name, _ in replies] == ["0", "1", "2", "3"]
    bodies = [body for _, body in replies]
    assert bodies[0] == '{"text": "a"}\n{"text": "b"}'
    assert [json.loads(bodies[1])["text"], bodies[2], list(json.loads(bodies[3]))] == ["x", "", ["ids"]]


def test_requests_that_wait_for_messages_keep_their_own_requests(service: Service) -> None:
    service.begin("lines", "GET", "/queues/a/messages?limit=9&wait=10", **NDJSON)
    service.begin("array", "GET", "/queues/b/messages?limit=9&wait=10")
    run_until(service.loop, lambda: len(service.app.unrestricted_store._waiting) == 2)  # type: ignore[attr-defined]
    service.begin("to b", "POST", "/queues/b/messages", {"text": "b"})
    service.begin("to a", "POST", "/queues/a/messages", {"text": "a"})
    assert service.finish("array", "lines") == [("array", '[{"text": "b"}]'), ("lines", '{"text": "a"}')]


def test_a_request_of_many_messages_keeps_its_own_request_while_its_reply_is_made(service: Service) -> None:
    for number in range(20):
        service.begin(f"{number}", "POST", "/queues/a/messages", {"text": "a"})
    service.finish(*map(str, range(20)))

    def read() -> None:
        service.loop.current().is_heavy = True
        service.begin("never", "GET", "/health")

    service.loop.run(read)
    service.begin("lines", "GET", "/queues/a/messages?limit=20", **NDJSON)
    service.begin("one", "GET", "/queues/a/messages")
    assert [name for name, _ in service.finish("lines", "one")] == ["lines", "one"]


def test_a_large_read_releases_its_own_memory_and_that_of_no_other_request(service: Service) -> None:
    """A large read waits for a thread, and continues after others have run."""
    for number in range(6):
        service.begin(f"send {number}", "POST", "/queues/a/messages", {"text": f"{number}" * 300_000})
    service.finish(*(f"send {number}" for number in range(6)))
    free = service.app.budget._replies._free
    for number in range(3):
        service.begin(f"large-{number}", "GET", "/queues/a/messages?limit=2")
        service.begin(f"small-{number}", "POST", "/queues/b/messages", {"text": "x"})
        assert service.app.budget._replies._free < free
    names = [f"{size}-{number}" for number in range(3) for size in ("large", "small")]
    assert [name for name, _ in service.finish(*names)] == names
    assert service.app.budget._replies._free == free == REPLIES


def test_a_blocking_call_delays_no_other_task(loop: Loop) -> None:
    done: list[str] = []
    going_on = threading.Event()

    def call() -> None:
        done.append(loop.call(lambda: f"called: {going_on.wait(LONG)}"))

    loop.run(call)
    loop.run(lambda: done.append("other"))
    assert done == ["other"]
    going_on.set()
    run_until(loop, lambda: len(done) == 2)
    assert done == ["other", "called: True"]


def test_an_error_in_a_blocking_call_is_raised_to_its_caller(loop: Loop) -> None:
    raised: list[str] = []

    def call() -> None:
        try:
            loop.call(lambda: 1 / 0)
        except ZeroDivisionError as fault:
            raised.append(str(fault))

    loop.run(call)
    run_until(loop, lambda: bool(raised))


def test_a_task_waits_as_long_as_requested_unless_it_is_woken(loop: Loop) -> None:
    ended: list[tuple[str, bool, float]] = []
    tasks: dict[str, Any] = {}

    def wait(name: str, seconds: float | None) -> None:
        tasks[name] = loop.current()
        began = time.monotonic()
        woken = loop.current().wait(seconds)
        ended.append((name, woken, time.monotonic() - began))

    for name, seconds in (("short", 0.05), ("woken", LONG), ("long", 0.2), ("woken by a thread", None)):
        loop.run(lambda name=name, seconds=seconds: wait(name, seconds))  # type: ignore[misc]
    tasks["woken"].wake()
    threading.Thread(target=tasks["woken by a thread"].wake).start()
    run_until(loop, lambda: len(ended) == 4)
    assert sorted(name for name, woken, _ in ended if woken) == ["woken", "woken by a thread"]
    assert [name for name, woken, _ in ended if not woken] == ["short", "long"]
    assert all(0.05 <= seconds < 0.2 + LONG / 2 for name, woken, seconds in ended if not woken)


def test_a_task_that_was_woken_before_it_waits_does_not_wait(loop: Loop) -> None:
    ended: list[bool] = []

    def wait() -> None:
        loop.current().wake()
        ended.append(loop.current().wait(LONG))

    loop.run(wait)
    assert ended == [True]


class Disk:
    """Record groups. `at_once`: whether a group can run without waiting."""

    def __init__(self, loop: Loop, lock: FileLock | None = None) -> None:
        self.at_once = True
        self.going_on = threading.Event()
        self.groups: list[tuple[int, bool]] = []  # their sizes, and whether the loop's thread ran them
        self.commits: GroupCommit[None] = GroupCommit(self.run_group, loop, lock)
        self._loop_thread = threading.get_ident()

    def run_group(self, tickets: Any, gather: Any, may_wait: bool) -> Any:
        if not may_wait and not self.at_once:
            return tickets
        if not self.at_once:
            self.going_on.wait(LONG)
        tickets = [*tickets, *gather()]
        for ticket in tickets:
            ticket.result = ticket.operation(None)
        self.groups.append((len(tickets), threading.get_ident() == self._loop_thread))
        return []

    def write(self, done: list[Any], text: str) -> Callable[[], None]:
        def write() -> None:
            try:
                done.append(self.commits.run(lambda _: text))
            except Busy:
                done.append(Busy)

        return write


def test_a_turn_commits_all_operations_that_arrived_in_it(loop: Loop) -> None:
    disk, done = Disk(loop), list[Any]()
    for text in "abc":
        loop.run(disk.write(done, text))
    assert done == []
    loop.turn()
    assert (done, disk.groups) == (["a", "b", "c"], [(3, True)])


def test_a_thread_runs_a_commit_that_must_wait_and_the_loop_continues(loop: Loop) -> None:
    disk, done = Disk(loop), list[Any]()
    disk.at_once = False
    loop.run(disk.write(done, "a"))
    loop.turn()
    loop.run(disk.write(done, "b"))
    loop.turn()
    assert (done, disk.groups) == ([], [])
    disk.going_on.set()
    run_until(loop, lambda: len(done) == 2)
    assert (done, disk.groups) == (["a", "b"], [(2, False)])


def test_a_thread_commits_a_heavy_operation(loop: Loop) -> None:
    disk, done = Disk(loop), list[Any]()

    def heavy() -> None:
        loop.current().is_heavy = True
        disk.write(done, "heavy")()

    loop.run(heavy)
    run_until(loop, lambda: bool(done))
    loop.run(disk.write(done, "light"))
    run_until(loop, lambda: len(done) == 2)
    assert disk.groups == [(1, False), (1, True)]


def test_a_thread_and_a_task_share_a_commit(loop: Loop) -> None:
    disk, done = Disk(loop), list[Any]()
    disk.at_once = False
    thread = threading.Thread(target=disk.write(done, "thread"))
    thread.start()
    while not disk.commits._led:
        time.sleep(0.001)
    loop.run(disk.write(done, "task"))
    disk.going_on.set()
    run_until(loop, lambda: len(done) == 2)
    thread.join()
    assert disk.groups == [(2, False)]


def test_a_task_that_waits_too_long_for_its_turn_fails_with_busy(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.sqlite.disk.group_commit.WAIT_LIMIT", 0.05)
    disk, done = Disk(loop), list[Any]()
    disk.commits._led = True  # another transaction runs, and does not end
    loop.run(disk.write(done, "a"))
    run_until(loop, lambda: bool(done))
    assert done == [Busy]


def test_a_thread_runs_the_commit_after_a_slow_one(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, done = Disk(loop), list[Any]()

    def operation(_: None) -> str:
        time.sleep(0.1)
        return "slow"

    loop.run(lambda: done.append(disk.commits.run(operation)))
    loop.turn()
    for text in "ab":
        loop.run(disk.write(done, text))
        run_until(loop, lambda text=text: text in done)  # type: ignore[misc]
    assert disk.groups == [(1, True), (1, False), (1, True)]


def test_the_loop_commits_once_another_process_has_freed_the_lock(loop: Loop, tmp_path: Path) -> None:
    mine, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    disk, done = Disk(loop, mine), list[Any]()
    with other.held():
        for text in "ab":
            loop.run(disk.write(done, text))
            loop.turn()
        assert disk.groups == []
    run_until(loop, lambda: len(done) == 2)
    assert (done, disk.groups) == (["a", "b"], [(2, True)])
    mine.close()
    other.close()


def test_a_lock_that_is_free_after_all_operations_have_given_up_is_left_to_other_processes(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sqlite.disk.group_commit.WAIT_LIMIT", 0.05)
    mine, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    disk, done = Disk(loop, mine), list[Any]()
    with other.held():
        loop.run(disk.write(done, "a"))
        run_until(loop, lambda: bool(done))
    with other.held(time.monotonic() + LONG) as held:
        assert (held, done) == (True, [Busy])
    mine.close()
    other.close()


def test_a_request_of_one_message_has_its_reply_made_in_the_loop(loop: Loop, tmp_path: Path) -> None:
    """A thread makes long replies. Those to acks once counted as long, because their transactions return nothing."""
    store = Service(loop, tmp_path).app.unrestricted_store
    verbs: list[Callable[[str], object]] = [
        store.settle,
        store.release,
        store.reject,
        lambda one: store.extend(one, 30),
    ]
    heavy: list[bool] = []

    def settle_all() -> None:
        store.send("q", [NewMessage("a")] * len(verbs))
        for settle, message in zip(verbs, store.receive(Receive(("q",), len(verbs), lease=30)), strict=True):
            settle(str(message.receipt))
            heavy.append(loop.current().is_heavy)

    loop.run(settle_all)
    run_until(loop, lambda: len(heavy) == len(verbs))
    assert heavy == [False] * len(verbs)
