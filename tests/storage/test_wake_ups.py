"""No wake-up is lost: a reader that waits gets what is there for it, although no second look comes by chance.

The readers wait for messages in memory, of which the looking thread sees no change by itself: it looks when it is rung
and when something falls due, and one ring that is left out leaves a reader waiting to its end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from storage import waiting as module
from storage.errors import TooManyPollers
from storage.waiting import Availability, Subscription, Waiting
from storage.wakeup_pipes import WakeupPipe, WakeupPipes

LONG = 5.0  # seconds, far less than the looking thread sleeps when nothing rings
NEVER = 600.0

Claim = Callable[[], list[str]]


class Shelf:
    """Messages by queue, and the sight on them."""

    def __init__(self) -> None:
        self.due: dict[str, float] = {}  # seconds until something falls due, by queue
        self.before_look: Callable[[], None] = lambda: None
        self.looks = self.rounds = 0
        self.closed = False
        self._texts: dict[str, list[str]] = {}
        self._guard = threading.Lock()

    def put(self, queue: str, *texts: str) -> None:
        """Without a word to anybody."""
        with self._guard:
            self._texts.setdefault(queue, []).extend(texts)

    def take(self, *queues: str) -> list[str]:
        with self._guard:
            return next(([self._texts[queue].pop(0)] for queue in queues if self._texts.get(queue)), [])

    def changed(self) -> bool:
        self.rounds += 1
        return False

    def availability(self, subscription: Subscription, most: int) -> Availability:
        self.before_look()
        with self._guard:
            ready = min(most, sum(len(self._texts.get(queue, ())) for queue in subscription.queues))
            self.looks += 1
        return Availability(
            ready, min((self.due[queue] for queue in subscription.queues if queue in self.due), default=None)
        )

    def close(self) -> None:
        time.sleep(0.05)
        self.closed = True


class Readers:
    """Readers that wait for the shelf's messages, each in a thread of its own."""

    def __init__(
        self, shelf: Shelf, capacity: int = 8, wakeup_pipe: WakeupPipe | None = None, look_every: float = NEVER
    ) -> None:
        self.shelf = shelf
        self.waiting = Waiting(lambda: shelf, capacity, wakeup_pipe, look_every)
        self._pool = ThreadPoolExecutor(16)

    def begin(
        self,
        *queues: str,
        claim: Claim | None = None,
        wait: float = LONG,
        present: Callable[[], bool] = lambda: True,
    ) -> Future[list[str]]:
        """A reader that waits from now on, the look at its arrival being over, unless it has ended already."""
        before, looks = len(self.waiting), self.shelf.looks
        claim = claim or (lambda: self.shelf.take(*queues))
        reader = self._pool.submit(self.waiting.receive, claim, Subscription(queues, ""), wait, present)
        until(lambda: (len(self.waiting) > before and self.shelf.looks > looks) or reader.done())
        return reader

    def put(self, queue: str, *texts: str) -> None:
        """As a commit of this process does."""
        self.shelf.put(queue, *texts)
        self.waiting.notify({queue})

    def close(self) -> None:
        self._pool.submit(self.waiting.close).result(LONG)
        self._pool.shutdown()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def readers(shelf: Shelf) -> Iterator[Readers]:
    readers = Readers(shelf)
    yield readers
    readers.close()


@pytest.fixture
def attentive(shelf: Shelf) -> Iterator[Readers]:
    """Whose looking thread asks the clock all the time, as it must for what falls due."""
    readers = Readers(shelf, look_every=0.005)
    yield readers
    readers.close()


def test_a_commit_wakes_the_reader_of_its_queue(readers: Readers) -> None:
    reader = readers.begin("q")
    readers.put("q", "a")
    assert reader.result(LONG) == ["a"]


def test_a_reader_of_several_queues_is_woken_by_a_commit_in_the_last(readers: Readers) -> None:
    reader = readers.begin("a", "b", "c")
    readers.put("c", "x")
    assert reader.result(LONG) == ["x"]


def test_what_comes_between_a_readers_claim_and_its_waiting_wakes_it(readers: Readers) -> None:
    """The commit saw no reader to wake, and the reader saw no message."""
    other = readers.begin("other")  # the looking thread sleeps from now on

    def claim() -> list[str]:
        if found := readers.shelf.take("q"):
            return found
        readers.put("q", "in between")
        return []

    assert readers.begin("q", claim=claim).result(LONG) == ["in between"]
    readers.put("other", "b")
    assert other.result(LONG) == ["b"]


class PromptBell(WakeupPipe):
    """While it is `prompt`, the look it rings for is over when `wake` returns: the worst moment for the ringer."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__()
        self.prompt = False
        self._shelf = shelf

    def wake(self) -> None:
        before = self._shelf.looks
        super().wake()
        if self.prompt:
            until(lambda: self._shelf.looks > before)


def test_a_reader_whose_message_is_taken_by_another_is_woken_by_the_next(shelf: Shelf) -> None:
    """The next one comes while the reader is awake for the first: to wake it once more has no effect then."""
    wakeup_pipe = PromptBell(shelf)
    readers = Readers(shelf, wakeup_pipe=wakeup_pipe)
    claims = 0

    def claim() -> list[str]:
        nonlocal claims
        claims += 1
        wakeup_pipe.prompt = claims == 2
        if claims != 2:
            return shelf.take("q")
        assert shelf.take("q") == ["stolen"]
        readers.put("q", "next")
        return []

    reader = readers.begin("q", claim=claim)
    readers.put("q", "stolen")
    assert reader.result(LONG) == ["next"]
    readers.close()


def test_a_reader_that_goes_when_it_is_woken_leaves_the_message_to_the_next(readers: Readers) -> None:
    gone = readers.begin("q", present=lambda: False)
    next_one = readers.begin("q")
    readers.put("q", "a")
    assert (gone.result(LONG), next_one.result(LONG)) == ([], ["a"])


def test_readers_are_woken_one_for_each_message_and_the_first_to_come_first(readers: Readers) -> None:
    awake = threading.Barrier(2)
    claimed: list[int] = []

    def claim(number: int) -> Claim:
        def look() -> list[str]:
            claimed.append(number)
            if claimed.count(number) > 1:
                awake.wait(LONG)  # two are awake at the same time: the second does not wait until the first is served
            return readers.shelf.take("q")

        return look

    polls = [readers.begin("q", claim=claim(number)) for number in range(4)]
    claimed.clear()
    claimed += range(4)
    readers.put("q", "a", "b")
    assert sorted(poll.result(LONG)[0] for poll in polls[:2]) == ["a", "b"]
    assert sorted(claimed[4:]) == [0, 1]
    assert len(readers.waiting) == 2
    readers.waiting.stop()


def test_the_next_reader_is_woken_although_nobody_has_waited_for_a_while(readers: Readers) -> None:
    for number in range(20):
        rounds = readers.shelf.rounds
        reader = readers.begin("q")
        readers.put("q", str(number))
        assert reader.result(LONG) == [str(number)]
        until(lambda: readers.shelf.rounds > rounds)  # noqa: B023  # then the looking thread sleeps until one waits


def test_what_falls_due_first_is_looked_at_first(attentive: Readers) -> None:
    attentive.shelf.due = {"soon": 0.05, "late": 50.0}
    soon, late = attentive.begin("soon"), attentive.begin("late")
    attentive.shelf.put("soon", "its lease has ended")
    assert soon.result(LONG) == ["its lease has ended"]
    attentive.put("late", "b")
    assert late.result(LONG) == ["b"]


def test_a_look_that_failed_is_taken_again(attentive: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.01)
    reader = attentive.begin("q")
    failed = threading.Event()

    def fail_once() -> None:
        if not failed.is_set():
            failed.set()
            raise OSError("the disk had no time")

    attentive.shelf.before_look = fail_once
    attentive.put("q", "a")
    assert reader.result(LONG) == ["a"]
    assert failed.is_set()


def test_readers_are_woken_although_the_looking_could_not_begin_at_once(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.01)
    failures = iter([OSError("too many open files")])

    def open_snapshot() -> Shelf:
        for failure in failures:
            raise failure
        return shelf

    readers = Readers(shelf, look_every=0.005)
    readers.waiting = Waiting(open_snapshot, 8, look_every=0.005)
    reader = readers.begin("q")
    readers.put("q", "a")
    assert reader.result(LONG) == ["a"]
    readers.close()


def test_a_reader_that_has_gone_is_noticed_although_nothing_comes(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PRESENCE_EVERY", 0.01)
    here = threading.Event()
    here.set()
    began = time.monotonic()
    reader = readers.begin("q", present=here.is_set)
    here.clear()
    assert reader.result(LONG) == []
    assert time.monotonic() - began < LONG / 2
    assert len(readers.waiting) == 0  # its place is another's


def test_a_reader_whose_messages_are_always_taken_by_others_waits_no_longer_than_it_said(readers: Readers) -> None:
    readers.shelf.put("q", "never to be had")
    assert readers.begin("q", claim=list, wait=0.1).result(LONG) == []


def test_a_place_that_a_reader_leaves_is_free(shelf: Shelf) -> None:
    readers = Readers(shelf, capacity=1)
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


def test_a_process_is_rung_by_others_only_while_a_reader_waits_in_it(shelf: Shelf) -> None:
    wakeup_pipes = WakeupPipes(2)
    mine, other = wakeup_pipes.take(), wakeup_pipes.take()
    readers = Readers(shelf, wakeup_pipe=mine)
    reader = readers.begin("q")
    assert list(wakeup_pipes.waiting) == [1, 0]
    shelf.put("q", "a")
    other.wake_others()
    assert reader.result(LONG) == ["a"]
    assert list(wakeup_pipes.waiting) == [0, 0]
    readers.close()


def test_a_commit_that_makes_nothing_ready_rings_no_other_process(shelf: Shelf) -> None:
    wakeup_pipes = WakeupPipes(2)
    mine, other = wakeup_pipes.take(), wakeup_pipes.take()
    readers = Readers(shelf, wakeup_pipe=mine)
    other.wanted(True)
    readers.waiting.notify(set())
    assert not other.wait(0)
    readers.waiting.notify({"q"})
    assert other.wait(0)
    readers.close()


def test_the_sight_is_closed_when_the_waiting_is(shelf: Shelf) -> None:
    readers = Readers(shelf)
    reader = readers.begin("q")
    readers.close()
    assert (reader.result(LONG), shelf.closed) == ([], True)
