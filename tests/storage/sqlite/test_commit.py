"""Group commit: one transaction runs many requests, and each gets its own result after the commit."""

from __future__ import annotations

import fcntl
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import apsw
import pytest

from storage.errors import Busy, DiskFull, QueueFull, QueueNotFound, Unavailable
from storage.sqlite.disk import group_commit as sqlite_group_commit
from storage.sqlite.disk.group_commit import GroupCommit, Ticket
from storage.sqlite.disk.lock import FileLock
from storage.sqlite.maintenance import check
from storage.sqlite.store import SqliteStore
from tests.support.connections import on_each_connection
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, in_threads, lease, new, peek, send, stats, take

Log = list[str]
LONG = 15.0  # seconds


class Bad(ValueError):
    pass


class Disk:
    """Run groups as an engine does, on a list. While `gate` is closed, a group that has begun does not end."""

    def __init__(self) -> None:
        self.committed: Log = []
        self.groups: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.commits = GroupCommit(self.run_group)

    def run_group(
        self, tickets: Sequence[Ticket[Log]], gather: Callable[[], Sequence[Ticket[Log]]], may_wait: bool
    ) -> Sequence[Ticket[Log]]:
        self.entered.release()
        self.gate.wait(LONG)
        self.groups.append(len(tickets))
        work: Log = []
        for ticket in tickets:
            try:
                ticket.result = ticket.operation(work)
            except ValueError as fault:
                ticket.error = fault
        self.committed += work
        return []

    def write(self, text: str) -> int:
        """Write a text. Return its place in its group, from 1; raise Bad for "bad"."""

        def operation(work: Log) -> int:
            if text == "bad":
                raise Bad(text)
            work.append(text)
            return len(work)

        return self.commits.run(operation)

    def hold_group(self, pool: ThreadPoolExecutor, text: str) -> Future[int]:
        """Start a group with this text that does not end before `gate` opens; return the future of its write."""
        self.gate.clear()
        leader = pool.submit(self.write, text)
        assert self.entered.acquire(timeout=LONG)
        return leader

    def queue_up(self, pool: ThreadPoolExecutor, *texts: str) -> list[Future[int]]:
        """Start writes that wait in this order; return their futures."""
        futures = []
        for text in texts:
            before = len(self.commits._waiting)
            futures.append(pool.submit(self.write, text))
            _until(partial(self._is_longer_than, before))
        return futures

    def _is_longer_than(self, length: int) -> bool:
        return len(self.commits._waiting) > length


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as pool:
        yield pool


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_an_error_and_the_frames_of_its_traceback_are_not_kept_alive() -> None:
    disk = Disk()
    gc.disable()
    try:
        with pytest.raises(ValueError, match="bad") as raised:
            disk.write("bad")
        fault = weakref.ref(raised.value)
        del raised
        assert fault() is None
    finally:
        gc.enable()


def test_a_single_operation_forms_its_own_group(disk: Disk) -> None:
    assert [disk.write("a"), disk.write("b")] == [1, 1]
    assert (disk.committed, disk.groups) == (["a", "b"], [1, 1])


def test_operations_that_arrive_during_a_commit_share_the_next_in_order_of_arrival(
    pool: ThreadPoolExecutor, disk: Disk
) -> None:
    leader = disk.hold_group(pool, "a")
    others = disk.queue_up(pool, *"bcdef")
    disk.gate.set()
    assert [leader.result(LONG), *(other.result(LONG) for other in others)] == [1, 1, 2, 3, 4, 5]
    assert (disk.committed, disk.groups) == (list("abcdef"), [1, 5])


def test_no_operation_is_acknowledged_before_its_commit(pool: ThreadPoolExecutor, disk: Disk) -> None:
    leader = disk.hold_group(pool, "a")
    others = disk.queue_up(pool, "b", "c")
    time.sleep(0.05)
    assert not any(future.done() for future in (leader, *others))
    disk.gate.set()
    assert [future.result(LONG) for future in (leader, *others)] == [1, 1, 2]


def test_a_failing_operation_does_not_fail_the_others_of_its_group(pool: ThreadPoolExecutor, disk: Disk) -> None:
    disk.hold_group(pool, "a")
    before, bad, after = disk.queue_up(pool, "b", "bad", "c")
    disk.gate.set()
    assert (before.result(LONG), after.result(LONG)) == (1, 2)
    with pytest.raises(ValueError, match="bad"):
        bad.result(LONG)


def test_operations_beyond_the_group_limit_form_the_next_group(
    pool: ThreadPoolExecutor, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_group_commit, "GROUP_LIMIT", 4)
    disk.hold_group(pool, "0")
    others = disk.queue_up(pool, *map(str, range(1, 11)))
    disk.gate.set()
    assert [other.result(LONG) for other in others] == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    assert disk.committed == [str(number) for number in range(11)]


def test_an_operation_that_waits_too_long_fails_with_busy_and_does_not_run_later(
    pool: ThreadPoolExecutor, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = disk.hold_group(pool, "a")
    monkeypatch.setattr(sqlite_group_commit, "WAIT_LIMIT", 0.1)
    (given_up,) = disk.queue_up(pool, "b")
    with pytest.raises(Busy):
        given_up.result(LONG)
    disk.gate.set()
    assert leader.result(LONG) == 1
    assert disk.write("c") == 1
    assert disk.committed == ["a", "c"]


def test_a_running_operation_is_not_given_up_however_long_it_takes(
    pool: ThreadPoolExecutor, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_group_commit, "WAIT_LIMIT", 0.2)
    disk.hold_group(pool, "a")
    first, second = disk.queue_up(pool, "b", "c")
    disk.gate.set()
    assert disk.entered.acquire(timeout=LONG)  # the group of b and c has begun
    disk.gate.clear()
    time.sleep(0.3)  # longer than an operation waits for its turn, if the group has not passed the gate
    disk.gate.set()
    assert (first.result(LONG), second.result(LONG)) == (1, 2)


def test_an_operation_in_a_slow_group_gets_its_result_and_not_busy(
    pool: ThreadPoolExecutor, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume, running = threading.Event(), threading.Event()

    def slow(work: Log) -> str:
        running.set()
        resume.wait(LONG)
        return "slow"

    disk.hold_group(pool, "a")
    monkeypatch.setattr(sqlite_group_commit, "WAIT_LIMIT", 0.05)
    before = len(disk.commits._waiting)
    leader = pool.submit(disk.commits.run, slow)
    _until(lambda: len(disk.commits._waiting) > before)
    (follower,) = disk.queue_up(pool, "b")
    disk.gate.set()
    assert running.wait(LONG)  # the group has both operations
    time.sleep(0.1)  # longer than an operation waits for its turn
    assert not follower.done()
    resume.set()
    assert (leader.result(LONG), follower.result(LONG)) == ("slow", 1)


def test_each_group_is_reported_with_its_size(pool: ThreadPoolExecutor, disk: Disk) -> None:
    reported: list[int] = []
    disk.commits.observe = lambda operations, seconds: reported.append(operations)
    disk.hold_group(pool, "a")
    others = disk.queue_up(pool, *"bcd")
    disk.gate.set()
    assert [other.result(LONG) for other in others] == [1, 2, 3]
    _until(lambda: len(reported) == 2)
    assert reported == [1, 3]


def test_a_lock_that_is_never_free_is_given_up_by_one_that_waited_too_long_while_it_was_tried(
    pool: ThreadPoolExecutor, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time had run out before the group of another thread, which it was in, was returned undone."""
    monkeypatch.setattr(sqlite_group_commit, "WAIT_LIMIT", 0.2)
    tries: list[int] = []

    def try_lock(
        tickets: Sequence[Ticket[Log]], gather: Callable[[], Sequence[Ticket[Log]]], may_wait: bool
    ) -> Sequence[Ticket[Log]]:
        tries.append(len(tickets))
        time.sleep(0.3 if len(tickets) > 1 else 0.01)
        now = time.monotonic()
        for ticket in tickets:
            ticket.error = Busy() if ticket.deadline <= now else None
        return [ticket for ticket in tickets if ticket.error is None] if len(tries) < 100 else []

    first = disk.hold_group(pool, "a")
    waiting = disk.queue_up(pool, "b", "c")
    disk.commits._run_group = try_lock
    disk.gate.set()
    assert first.result(LONG) == 1
    assert [type(future.exception(LONG)) for future in waiting] == [Busy, Busy]
    assert len(tries) < 50


class PowerCut(BaseException):
    pass


def test_when_a_leader_fails_all_of_its_group_fail_and_the_next_group_runs(
    pool: ThreadPoolExecutor, disk: Disk
) -> None:
    failing = threading.Event()
    run_group = disk.commits._run_group

    def fail(
        tickets: Sequence[Ticket[Log]], gather: Callable[[], Sequence[Ticket[Log]]], may_wait: bool
    ) -> Sequence[Ticket[Log]]:
        run_group(tickets, gather, may_wait)
        if failing.is_set() and len(tickets) > 1:
            raise PowerCut
        return []

    disk.commits._run_group = fail
    disk.hold_group(pool, "a")
    failing.set()
    led = disk.queue_up(pool, "b", "c", "d")
    disk.gate.set()
    outcomes = [future.exception(LONG) for future in led]
    assert isinstance(outcomes[0], PowerCut)
    assert [type(outcome) for outcome in outcomes[1:]] == [RuntimeError, RuntimeError]
    failing.clear()
    assert disk.write("e") == 1


def test_many_threads_lose_and_duplicate_no_operation(disk: Disk) -> None:
    def hammer(number: int) -> int:
        return sum(disk.write(f"{number}/{place}") > 0 for place in range(200))

    assert in_threads([partial(hammer, number) for number in range(32)]) == [200] * 32
    assert sorted(disk.committed) == sorted(f"{number}/{place}" for number in range(32) for place in range(200))
    assert sum(disk.groups) == 6_400


# The same on a real file.


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "queue.db")
    yield store
    store.close()


def run_as_group(tmp_path: Path, store: SqliteStore, operations: Sequence[Callable[[], object]]) -> list[object]:
    """Run all operations but the first in one group, and return the result or error of each.

    To do so, hold the lock of the file until all of them wait.
    """

    def is_waiting(followers: int) -> bool:
        return store._commits._led and len(store._commits._waiting) == followers

    with (tmp_path / "queue.db-lock").open() as lock, ThreadPoolExecutor(len(operations)) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        futures = []
        for place, operation in enumerate(operations):
            futures.append(pool.submit(operation))
            _until(partial(is_waiting, place))
        fcntl.flock(lock, fcntl.LOCK_UN)
        return [future.exception(LONG) or future.result() for future in futures]


def test_a_refused_request_does_not_affect_the_others_of_its_group(tmp_path: Path, store: SqliteStore) -> None:
    configure(store, "full", max_messages=1)
    outcomes = run_as_group(
        tmp_path,
        store,
        [
            lambda: send(store, "first"),
            lambda: send(store, "a"),
            lambda: store.transact([], [("q", new("half of it")), ("full", new("b")), ("full", new("c"))]),
            lambda: store.purge("nowhere"),
            lambda: send(store, "b"),
        ],
    )
    assert [type(outcome) for outcome in outcomes] == [list, list, QueueFull, QueueNotFound, list]
    assert peek(store) == ["first", "a", "b"]
    assert stats(store).ready == 3
    assert check(tmp_path / "queue.db").startswith("ok")  # all counts match the messages


def test_no_request_waits_longer_than_the_limit_for_a_stopped_process(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process keeps the lock. A request that arrives later has the full time to wait."""
    monkeypatch.setattr(sqlite_group_commit, "WAIT_LIMIT", 0.5)
    with (tmp_path / "queue.db-lock").open() as lock, ThreadPoolExecutor(4) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        early = [pool.submit(send, store, "early") for _ in range(2)]
        _until(lambda: len(store._commits._waiting) == 1)
        time.sleep(0.3)
        late = pool.submit(send, store, "late")
        assert [type(future.exception(LONG)) for future in early] == [Busy, Busy]
        assert not late.done()
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert len(late.result(LONG)) == 1
    assert peek(store) == ["late"]


def test_a_lock_that_is_acquired_after_the_wait_ended_is_released(tmp_path: Path) -> None:
    ours, others = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    with others.held(), ours.held(time.monotonic() + 0.05) as held:
        assert not held
    with others.held(time.monotonic() + LONG) as held:
        assert held
    with ours.held(time.monotonic() + LONG) as held:
        assert held
        with others.held(time.monotonic()) as second:
            assert not second
    ours.close()
    others.close()


def test_a_lock_is_acquired_in_the_order_of_the_requests(tmp_path: Path) -> None:
    """This holds although the first request gave up and another of its process took its place."""
    locks = [FileLock(tmp_path / "lock") for _ in range(3)]
    acquired: list[int] = []

    def wait(number: int) -> None:
        with locks[number].held(time.monotonic() + LONG) as held:
            assert held
            acquired.append(number)

    with ThreadPoolExecutor(2) as pool:
        with locks[0].held():
            with locks[1].held(time.monotonic() + 0.05) as held:
                assert not held
            first = pool.submit(wait, 2)
            _until(lambda: locks[2]._queueing)
            time.sleep(0.05)
            second = pool.submit(wait, 1)
            _until(lambda: locks[1]._wanted)
        first.result(LONG)
        second.result(LONG)
    assert acquired == [1, 2]
    for lock in locks:
        lock.close()


def test_a_reserved_lock_is_kept_until_it_is_used_or_cancelled(tmp_path: Path) -> None:
    ours, others = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    ready = threading.Event()
    for end in (partial(ours.held, 0.0), ours.cancel):
        ready.clear()
        with others.held():
            assert not ours.reserve(ready.set)
        assert ready.wait(LONG)
        assert ours.reserve(ready.set)
        with others.held(time.monotonic() + 0.05) as held:
            assert not held
        if (block := end()) is not None:
            with block as held:
                assert held
                ours.cancel()  # this frees no lock in use
                with others.held(time.monotonic() + 0.05) as second:
                    assert not second
        with others.held(time.monotonic() + LONG) as held:
            assert held
    ours.close()
    others.close()


def test_a_lock_excludes_all_others_and_is_never_left_behind(tmp_path: Path) -> None:
    """In each of two processes a thread waits for the lock, and a loop reserves it and uses or frees it."""
    locks = [FileLock(tmp_path / "lock") for _ in range(2)]
    leads = [threading.Lock() for _ in locks]  # in each process one at a time holds it, as with group commit
    inside: list[int] = []

    def use(number: int, deadline: float) -> bool:
        with locks[number].held(deadline) as held:
            if held:
                inside.append(number)
                assert inside == [number]
                inside.pop()
        return held

    def wait(number: int) -> bool:
        for _ in range(500):
            with leads[number]:
                assert use(number, time.monotonic() + LONG)
        return True

    def reserve(number: int) -> bool:
        ready = threading.Event()
        for place in range(500):
            if not locks[number].reserve(ready.set) and place % 3:
                ready.wait(0.01)
            if leads[number].acquire(blocking=False):
                if place % 2:
                    use(number, 0.0)
                leads[number].release()
            locks[number].cancel()
        return True

    assert in_threads([partial(work, number) for work in (wait, reserve) for number in range(2)]) == [True] * 4
    for lock in locks:
        lock.close()


def test_a_service_that_has_just_written_is_ready_without_writing_again(store: SqliteStore) -> None:
    groups: list[int] = []

    class Observer:
        def committed(self, operations: int, seconds: float) -> None:
            groups.append(operations)

        def waiting(self, readers: int) -> None:
            pass

    send(store, "a")
    store.observe(Observer())
    for _ in range(50):
        store.check_ready()
    assert groups == []
    store._committer._committed_at -= 2  # as if the last commit were two seconds older
    store.check_ready()
    assert sum(groups) >= 1


def test_a_refused_transaction_leaves_nothing_that_the_next_in_its_group_counts_or_finds(
    tmp_path: Path, store: SqliteStore
) -> None:
    """The transaction acks, creates a queue and sends before it is refused. Then others use the same queues."""
    configure(store, "full", max_messages=1)
    send(store, "held", "free", queue="counted")
    held = lease(store, queue="counted", seconds=60)[0].receipt
    refused = [("counted", new("half")), ("early", new("half")), ("full", new("one")), ("full", new("too many"))]
    outcomes = run_as_group(
        tmp_path,
        store,
        [
            lambda: send(store, "first"),
            lambda: store.transact([held], refused),
            lambda: send(store, "a", queue="early"),
            lambda: store.transact([], refused),
            lambda: send(store, "b", queue="early"),
            lambda: store.settle(held),
            lambda: store.transact([], refused),
        ],
    )
    assert [type(outcome) for outcome in outcomes] == [
        list, QueueFull, list, QueueFull, list, type(None), QueueFull,
    ]  # fmt: skip
    assert (peek(store, queue="early"), peek(store, queue="counted")) == (["a", "b"], ["free"])
    assert (stats(store, "early").sent, stats(store, "counted").sent, stats(store, "counted").acked) == (2, 2, 1)
    assert check(tmp_path / "queue.db").startswith("ok: 4 messages")  # all other counts match the messages


def test_an_expired_message_is_not_delivered_to_a_read_of_the_same_group(tmp_path: Path) -> None:
    clock = FakeClock()
    store = SqliteStore(tmp_path / "queue.db", clock=clock)
    send(store, "late", ttl=0.5)
    held = lease(store, seconds=60)
    clock.advance(1)
    outcomes = run_as_group(
        tmp_path,
        store,
        [
            lambda: send(store, "first", queue="other"),
            lambda: take(store),
            lambda: store.release(held[0].receipt),
            lambda: take(store),
        ],
    )
    assert outcomes[1:] == [[], None, []]
    assert stats(store).expired == 1
    store.close()


def test_a_request_that_fills_the_disk_does_not_affect_the_others_of_its_group(tmp_path: Path) -> None:
    with on_each_connection(lambda connection: connection.pragma("max_page_count", 200)):
        store = SqliteStore(tmp_path / "queue.db")
        outcomes = run_as_group(
            tmp_path,
            store,
            [
                lambda: send(store, "first"),
                lambda: send(store, "a"),
                lambda: send(store, "x" * 5_000_000),
                lambda: take(store),
                lambda: send(store, "b"),
            ],
        )
        assert [type(outcome) for outcome in outcomes] == [list, list, DiskFull, list, list]
        assert peek(store) == ["a", "b"]
        store.close()


def test_no_request_is_acknowledged_when_the_commit_fails(tmp_path: Path) -> None:
    failing = threading.Event()
    with on_each_connection(lambda connection: connection.set_commit_hook(failing.is_set)):
        store = SqliteStore(tmp_path / "queue.db")
        send(store, "before")
        failing.set()
        outcomes = run_as_group(
            tmp_path, store, [lambda: send(store, "a"), lambda: send(store, "b"), lambda: take(store)]
        )
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
        failing.clear()
        assert peek(store) == ["before"]
        assert send(store, "c")
        store.close()


def test_requests_fail_within_the_limit_while_another_program_locks_the_file(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_group_commit, "WAIT_LIMIT", 0.3)
    other = apsw.Connection(str(tmp_path / "queue.db"))
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    outcomes = in_threads([lambda: send(store, "a")] * 8)
    assert [type(outcome) for outcome in outcomes] == [Busy] * 8
    assert time.monotonic() - began < 3
    assert peek(store) == []  # reads still work
    other.execute("ROLLBACK")
    other.close()
    assert send(store, "b")
    assert peek(store) == ["b"]


def test_each_thread_sees_its_committed_messages_at_once(store: SqliteStore) -> None:
    def work(number: int) -> bool:
        seen = True
        for place in range(20):
            ids = send(store, f"{number}/{place}", queue=f"q{number}")
            seen = seen and [message.id for message in store.peek(f"q{number}", after=ids[0] - 1)] == ids
        return seen

    assert in_threads([partial(work, number) for number in range(16)]) == [True] * 16
