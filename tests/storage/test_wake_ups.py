"""No wake-up is lost: a waiting reader gets its message, although no chance check of the queues helps.

The readers wait for messages in memory, whose changes the checking thread cannot see by itself. It checks the queues
only when its pipe wakes it or a deadline passes. So one missing wake-up leaves a reader waiting until its time is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from storage import waiting as module
from storage.errors import TooManyPollers
from storage.scheduling import Threads
from storage.waiting import Availability, Subscription, Waiting

LONG = 5.0  # seconds, far less than the checking thread sleeps without a wake-up
NEVER = 600.0

Claim = Callable[[], list[str]]


class MemorySnapshot:
    """Hold messages by queue in memory, and report which are ready."""

    def __init__(self) -> None:
        self.due: dict[str, float] = {}  # seconds until the next deadline, by queue
        self.before_check: Callable[[], None] = lambda: None
        self.checks = self.rounds = 0
        self.closed = False
        self._texts: dict[str, list[str]] = {}
        self._guard = threading.Lock()

    def put(self, queue: str, *texts: str) -> None:
        """Add messages without notifying a reader."""
        with self._guard:
            self._texts.setdefault(queue, []).extend(texts)

    def take(self, *queues: str) -> list[str]:
        with self._guard:
            return next(([self._texts[queue].pop(0)] for queue in queues if self._texts.get(queue)), [])

    def changed(self) -> bool:
        self.rounds += 1
        return False

    def in_use(self, queues: Sequence[str]) -> Sequence[str]:
        return queues

    def availability(self, subscription: Subscription, most: int) -> Availability:
        self.before_check()
        with self._guard:
            ready = min(most, sum(len(self._texts.get(queue, ())) for queue in subscription.queues))
            self.checks += 1
        return Availability(
            ready, min((self.due[queue] for queue in subscription.queues if queue in self.due), default=None)
        )

    def close(self) -> None:
        time.sleep(0.05)
        self.closed = True


class Readers:
    """Run readers that wait for the messages in memory, each in its own thread."""

    def __init__(
        self, snapshot: MemorySnapshot, capacity: int = 8, scheduler: Threads | None = None, look_every: float = NEVER
    ) -> None:
        self.snapshot = snapshot
        self.waiting = Waiting(lambda: snapshot, capacity, scheduler, look_every)
        self._pool = ThreadPoolExecutor(16)

    def begin(
        self,
        *queues: str,
        claim: Claim | None = None,
        wait: float = LONG,
        present: Callable[[], bool] = lambda: True,
    ) -> Future[list[str]]:
        """Start a reader. Return when it waits and its first check is over, or when it has ended."""
        before, checks = len(self.waiting), self.snapshot.checks
        claim = claim or (lambda: self.snapshot.take(*queues))
        reader = self._pool.submit(self.waiting.receive, claim, Subscription(queues, ""), wait, present)
        wait_until(lambda: (len(self.waiting) > before and self.snapshot.checks > checks) or reader.done())
        return reader

    def put(self, queue: str, *texts: str) -> None:
        """Add messages and notify the readers, as a commit in this process does."""
        self.snapshot.put(queue, *texts)
        self.waiting.notify({queue})

    def close(self) -> None:
        self._pool.submit(self.waiting.close).result(LONG)
        self._pool.shutdown()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


@pytest.fixture
def snapshot() -> MemorySnapshot:
    return MemorySnapshot()


@pytest.fixture
def readers(snapshot: MemorySnapshot) -> Iterator[Readers]:
    readers = Readers(snapshot)
    yield readers
    readers.close()


@pytest.fixture
def polling_readers(snapshot: MemorySnapshot) -> Iterator[Readers]:
    """Create readers whose checking thread also polls often, so that it notices deadlines."""
    readers = Readers(snapshot, look_every=0.005)
    yield readers
    readers.close()


def test_a_commit_wakes_a_reader_of_its_queue(readers: Readers) -> None:
    reader = readers.begin("q")
    readers.put("q", "a")
    assert reader.result(LONG) == ["a"]


def test_a_reader_of_several_queues_is_woken_by_a_commit_in_the_last(readers: Readers) -> None:
    reader = readers.begin("a", "b", "c")
    readers.put("c", "x")
    assert reader.result(LONG) == ["x"]


def test_a_reader_that_names_a_queue_twice_waits_as_others_do(readers: Readers) -> None:
    reader = readers.begin("a", "a")
    readers.put("a", "x")
    assert reader.result(LONG) == ["x"]
    assert len(readers.waiting) == 0


def test_a_message_sent_between_a_readers_claim_and_its_wait_wakes_it(readers: Readers) -> None:
    """The commit finds no reader to wake, and the reader finds no message."""
    other = readers.begin("other")  # the checking thread sleeps from now on

    def claim() -> list[str]:
        if found := readers.snapshot.take("q"):
            return found
        readers.put("q", "in between")
        return []

    assert readers.begin("q", claim=claim).result(LONG) == ["in between"]
    readers.put("other", "b")
    assert other.result(LONG) == ["b"]


def test_a_reader_whose_message_is_taken_by_another_gets_the_next(readers: Readers) -> None:
    """The next message arrives while the reader is awake for the first, so another wake-up has no effect."""
    claims = 0

    def claim() -> list[str]:
        nonlocal claims
        claims += 1
        if claims != 2:
            return readers.snapshot.take("q")
        assert readers.snapshot.take("q") == ["stolen"]
        checks = readers.snapshot.checks
        readers.put("q", "next")
        wait_until(lambda: readers.snapshot.checks > checks)  # the check for it is over: the worst moment
        return []

    reader = readers.begin("q", claim=claim)
    readers.put("q", "stolen")
    assert reader.result(LONG) == ["next"]


def test_a_reader_that_disconnects_leaves_the_message_to_the_next_reader(readers: Readers) -> None:
    disconnected = readers.begin("q", present=lambda: False)
    next_one = readers.begin("q")
    readers.put("q", "a")
    assert (disconnected.result(LONG), next_one.result(LONG)) == ([], ["a"])


def test_one_reader_is_woken_for_each_message_in_order_of_arrival(readers: Readers) -> None:
    awake = threading.Barrier(2)
    claimed: list[int] = []

    def claim(number: int) -> Claim:
        def claim_and_record() -> list[str]:
            claimed.append(number)
            if claimed.count(number) > 1:
                awake.wait(LONG)  # both are awake at once: the second does not wait for the first
            return readers.snapshot.take("q")

        return claim_and_record

    polls = [readers.begin("q", claim=claim(number)) for number in range(4)]
    claimed.clear()
    claimed += range(4)
    readers.put("q", "a", "b")
    assert sorted(poll.result(LONG)[0] for poll in polls[:2]) == ["a", "b"]
    assert sorted(claimed[4:]) == [0, 1]
    assert len(readers.waiting) == 2
    readers.waiting.stop()


def test_a_reader_is_woken_although_no_reader_was_waiting_before_it(readers: Readers) -> None:
    for number in range(20):
        rounds = readers.snapshot.rounds
        reader = readers.begin("q")
        readers.put("q", str(number))
        assert reader.result(LONG) == [str(number)]
        wait_until(lambda: readers.snapshot.rounds > rounds)  # noqa: B023  # then the checking thread sleeps


def test_the_queue_with_the_earliest_deadline_is_checked_first(polling_readers: Readers) -> None:
    polling_readers.snapshot.due = {"soon": 0.05, "late": 50.0}
    soon, late = polling_readers.begin("soon"), polling_readers.begin("late")
    polling_readers.snapshot.put("soon", "its lease has ended")
    assert soon.result(LONG) == ["its lease has ended"]
    polling_readers.put("late", "b")
    assert late.result(LONG) == ["b"]


def test_a_failed_check_is_repeated(polling_readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.01)
    reader = polling_readers.begin("q")
    failed = threading.Event()

    def fail_once() -> None:
        if not failed.is_set():
            failed.set()
            raise OSError("the disk had no time")

    polling_readers.snapshot.before_check = fail_once
    polling_readers.put("q", "a")
    assert reader.result(LONG) == ["a"]
    assert failed.is_set()


def test_readers_are_woken_although_opening_the_snapshot_fails_at_first(
    snapshot: MemorySnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.01)
    failures = iter([OSError("too many open files")])

    def open_snapshot() -> MemorySnapshot:
        for failure in failures:
            raise failure
        return snapshot

    readers = Readers(snapshot, look_every=0.005)
    readers.waiting = Waiting(open_snapshot, 8, look_every=0.005)
    reader = readers.begin("q")
    readers.put("q", "a")
    assert reader.result(LONG) == ["a"]
    readers.close()


def test_a_disconnected_reader_is_noticed_without_a_message(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Threads, "presence_every", 0.01)
    connected = threading.Event()
    connected.set()
    began = time.monotonic()
    reader = readers.begin("q", present=connected.is_set)
    connected.clear()
    assert reader.result(LONG) == []
    assert time.monotonic() - began < LONG / 2
    assert len(readers.waiting) == 0  # another reader can wait in its place


def test_a_reader_that_never_gets_its_message_waits_no_longer_than_requested(readers: Readers) -> None:
    readers.snapshot.put("q", "never to be had")
    assert readers.begin("q", claim=list, wait=0.1).result(LONG) == []


def test_a_reader_that_returns_makes_room_for_another(snapshot: MemorySnapshot) -> None:
    readers = Readers(snapshot, capacity=1)
    counted: list[int] = []
    readers.waiting.observe = counted.append
    for text in "ab":
        reader = readers.begin("q")
        with pytest.raises(TooManyPollers):
            readers.begin("q").result(LONG)
        readers.put("q", text)
        assert reader.result(LONG) == [text]
    assert counted == [1, 0, 1, 0]
    readers.close()


def test_closing_the_waiting_closes_the_snapshot(snapshot: MemorySnapshot) -> None:
    readers = Readers(snapshot)
    reader = readers.begin("q")
    readers.close()
    assert (reader.result(LONG), snapshot.closed) == ([], True)
