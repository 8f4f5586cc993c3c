"""Long polls: every change that makes a message ready wakes a waiting reader, and no reader is missed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.errors import TooManyPollers
from storage.model import Message, Receive
from storage.sqlite.store import SqliteStore
from storage.store import Store
from tests.support.live import REPOSITORY
from tests.support.shorthand import configure, lease_one, new, send, stats, take

SOON = 0.5  # seconds: far more than a wake-up takes, far less than the polls here wait
LONG = 15.0  # seconds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path)
    yield store
    store.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as pool:
        yield pool


class Poll:
    """Run a reader in its own thread. It is waiting, or has returned, when the constructor returns."""

    def __init__(
        self, pool: ThreadPoolExecutor, store: SqliteStore, request: Receive, present: Callable[[], bool] = lambda: True
    ) -> None:
        before = len(store._waiting)  # the store has no method that returns the number of readers
        self._result: Future[tuple[Sequence[Message], float]] = pool.submit(self._run, store, request, present)
        while len(store._waiting) == before and not self._result.done():
            time.sleep(0.001)

    @staticmethod
    def _run(store: Store, request: Receive, present: Callable[[], bool]) -> tuple[Sequence[Message], float]:
        return store.receive(request, present=present), time.monotonic()

    def texts(self) -> list[str]:
        return [message.text for message in self._result.result(LONG)[0]]

    def delay_after(self, moment: float) -> float:
        """Return the seconds from a moment to the poll's return."""
        return self._result.result(LONG)[1] - moment

    def error(self) -> BaseException | None:
        return self._result.exception(LONG)


def request(
    *queues: str, wait: float = LONG, recipient: str = "", lease: float | None = None, limit: int = 1
) -> Receive:
    return Receive(queues or ("q",), limit, lease, recipient, wait)


def test_a_reader_that_finds_a_message_does_not_wait(store: SqliteStore) -> None:
    send(store, "a")
    began = time.monotonic()
    assert store.receive(request())[0].text == "a"
    assert time.monotonic() - began < SOON


def test_a_reader_waits_for_the_requested_time_and_no_longer(store: SqliteStore) -> None:
    began = time.monotonic()
    assert store.receive(request(wait=0.2)) == []
    assert 0.2 <= time.monotonic() - began < 0.2 + SOON


def test_a_reader_is_woken_by_a_write_in_this_process(pool: ThreadPoolExecutor, store: SqliteStore) -> None:
    poll = Poll(pool, store, request())
    sent = time.monotonic()
    send(store, "a")
    assert poll.texts() == ["a"]
    assert poll.delay_after(sent) < SOON


def test_a_reader_is_woken_by_a_write_through_another_store_on_the_file(
    pool: ThreadPoolExecutor, store: SqliteStore, path: Path
) -> None:
    other = SqliteStore(path)
    poll = Poll(pool, store, request())
    send(other, "a")
    sent = time.monotonic()
    assert poll.texts() == ["a"]
    assert poll.delay_after(sent) < SOON
    other.close()


def test_a_reader_is_woken_by_a_write_in_another_process(
    pool: ThreadPoolExecutor, store: SqliteStore, path: Path
) -> None:
    poll = Poll(pool, store, request())
    program = (
        "import sys, time; from storage import open_store; from storage.model import NewMessage\n"
        "store = open_store('sqlite:///' + sys.argv[1]); store.send('q', [NewMessage('a')])\n"
        "print(time.monotonic()); store.close()"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=REPOSITORY, check=True, capture_output=True, timeout=60
    )
    assert poll.texts() == ["a"]
    assert poll.delay_after(float(completed.stdout)) < SOON


@pytest.mark.parametrize(
    "action",
    [
        lambda store, receipt: None,  # the lease expires
        lambda store, receipt: store.release(receipt),
        lambda store, receipt: store.release(receipt, 0.1),
        lambda store, receipt: store.extend(receipt, 0.1),
    ],
    ids=["lease ends", "release", "release with delay", "shorter lease"],
)
def test_a_reader_is_woken_when_a_leased_message_becomes_ready(
    pool: ThreadPoolExecutor, store: SqliteStore, action: Callable[[Store, str], None]
) -> None:
    send(store, "a")
    held = lease_one(store, seconds=0.4)
    poll = Poll(pool, store, request())
    began = time.monotonic()
    action(store, held.receipt)
    assert poll.texts() == ["a"]
    assert poll.delay_after(began) < 0.4 + SOON


def test_a_reader_is_woken_when_a_delay_ends(pool: ThreadPoolExecutor, store: SqliteStore) -> None:
    poll = Poll(pool, store, request())
    sent = time.monotonic()
    send(store, "a", delay=0.3)
    assert poll.texts() == ["a"]
    assert 0.3 <= poll.delay_after(sent) < 0.3 + SOON


def test_a_reader_is_woken_when_the_head_of_a_key_is_settled(pool: ThreadPoolExecutor, store: SqliteStore) -> None:
    send(store, "a1", "a2", key="a")
    held = lease_one(store)
    poll = Poll(pool, store, request())
    store.settle(held.receipt)
    assert poll.texts() == ["a2"]


@pytest.mark.parametrize("how", ["ack", "expiry", "reject", "transaction"])
def test_a_reader_is_woken_when_the_head_of_a_key_is_removed_in_any_way(
    pool: ThreadPoolExecutor, store: SqliteStore, how: str
) -> None:
    store.send("q", [new("1", key="k", recipient="ann", **({"ttl": 0.3} if how == "expiry" else {}))])
    send(store, "2", key="k")
    poll = Poll(pool, store, request())
    if how != "expiry":
        receipt = lease_one(store, recipient="ann").receipt
        ways: dict[str, Callable[[], object]] = {
            "ack": lambda: store.settle(receipt),
            "reject": lambda: store.reject(receipt),
            "transaction": lambda: store.transact([receipt], []),
        }
        ways[how]()
    assert poll.texts() == ["2"]


def test_a_reader_of_several_queues_is_woken_by_a_message_in_any_of_them(
    pool: ThreadPoolExecutor, store: SqliteStore
) -> None:
    polls = [Poll(pool, store, request("a", "b")) for _ in range(2)]
    send(store, "1", queue="b")
    send(store, "2", queue="a")
    assert sorted(poll.texts()[0] for poll in polls) == ["1", "2"]


def test_a_reader_is_woken_only_by_messages_that_it_can_receive(pool: ThreadPoolExecutor, store: SqliteStore) -> None:
    ann, unaddressed = Poll(pool, store, request(recipient="ann")), Poll(pool, store, request())
    send(store, "to bob", recipient="bob")
    send(store, "to ann", recipient="ann")
    send(store, "to all")
    assert (ann.texts(), unaddressed.texts()) == (["to ann"], ["to all"])


def test_a_reader_is_woken_when_a_paused_queue_resumes(pool: ThreadPoolExecutor, store: SqliteStore) -> None:
    configure(store, paused=True)
    send(store, "a")
    poll = Poll(pool, store, request())
    time.sleep(0.05)
    assert stats(store).ready == 1
    configure(store, paused=False)
    assert poll.texts() == ["a"]


def test_a_reader_of_dead_letters_is_woken_although_no_client_reads_the_source_queue(
    pool: ThreadPoolExecutor, store: SqliteStore
) -> None:
    configure(store, max_receives=1)
    send(store, "a")
    poll = Poll(pool, store, request("q.dead"))
    lease_one(store, seconds=0.2)
    assert poll.texts() == ["a"]


def test_the_receive_of_a_transaction_waits_after_the_commit(pool: ThreadPoolExecutor, store: SqliteStore) -> None:
    send(store, "in")
    receipt = lease_one(store).receipt
    done = pool.submit(store.transact, [receipt], [("out", new("result"))], request(lease=30))
    assert store.receive(request("out"))[0].text == "result"
    send(store, "next")
    assert [message.text for message in done.result(LONG).messages] == ["next"]


def test_the_number_of_waiting_readers_is_limited(pool: ThreadPoolExecutor, path: Path) -> None:
    store = SqliteStore(path, pollers=2)
    polls = [Poll(pool, store, request()) for _ in range(2)]
    with pytest.raises(TooManyPollers):
        store.receive(request())
    send(store, "other", queue="other")
    assert store.receive(request("other"))[0].text == "other"  # a read that finds a message needs no free place
    assert store.receive(request(wait=0)) == []
    send(store, "a", "b")
    assert sorted(poll.texts()[0] for poll in polls) == ["a", "b"]
    send(store, "c", delay=0.05)
    assert store.receive(request())[0].text == "c"
    store.close()


def test_a_transaction_commits_and_returns_its_ids_although_it_cannot_wait(
    pool: ThreadPoolExecutor, path: Path
) -> None:
    store = SqliteStore(path, pollers=1)
    poll = Poll(pool, store, request())
    send(store, "in", queue="in")
    receipt = lease_one(store, queue="in").receipt
    done = store.transact([receipt], [("out", new("result"))], request("in", lease=30))
    assert (len(done.ids), done.messages, take(store, queue="out")) == (1, [], ["result"])
    store.stop_waiting()
    assert poll.texts() == []
    store.close()


def test_all_waiting_readers_return_at_once_when_waiting_is_stopped(
    pool: ThreadPoolExecutor, store: SqliteStore
) -> None:
    polls = [Poll(pool, store, request()) for _ in range(20)]
    stopped = time.monotonic()
    store.stop_waiting()
    assert [poll.texts() for poll in polls] == [[]] * 20
    assert max(poll.delay_after(stopped) for poll in polls) < SOON
    assert store.receive(request()) == []  # later readers do not wait either
    assert time.monotonic() - stopped < 2 * SOON
    send(store, "a")
    assert take(store) == ["a"]  # ready messages are still delivered


def test_stopping_and_closing_a_store_ends_its_readers_and_threads(pool: ThreadPoolExecutor, path: Path) -> None:
    store = SqliteStore(path)
    poll = Poll(pool, store, request())
    store.stop_waiting()
    assert poll.texts() == []
    before = threading.active_count()
    store.close()
    assert threading.active_count() < before  # the store's own threads have ended


def test_a_disconnected_reader_takes_no_message(pool: ThreadPoolExecutor, store: SqliteStore) -> None:
    connected = threading.Event()
    connected.set()
    disconnected = Poll(pool, store, request(), present=connected.is_set)
    next_one = Poll(pool, store, request())
    connected.clear()
    left_at = time.monotonic()
    send(store, "a")
    assert (disconnected.texts(), next_one.texts()) == ([], ["a"])
    assert disconnected.delay_after(left_at) < SOON  # it also stops waiting
    assert stats(store).received == 1


def test_readers_are_served_in_order_of_arrival(pool: ThreadPoolExecutor, store: SqliteStore) -> None:
    polls = [Poll(pool, store, request()) for _ in range(5)]
    for number, poll in enumerate(polls):
        send(store, str(number))
        assert poll.texts() == [str(number)]


@pytest.mark.parametrize("batches", [[20], [1] * 20, [7, 13]])
def test_each_of_n_readers_gets_one_of_n_messages(
    pool: ThreadPoolExecutor, store: SqliteStore, batches: list[int]
) -> None:
    polls = [Poll(pool, store, request()) for _ in range(20)]
    for size in batches:
        send(store, *["x"] * size)
    assert [poll.texts() for poll in polls] == [["x"]] * 20


def test_n_readers_of_two_stores_get_one_message_each(pool: ThreadPoolExecutor, store: SqliteStore, path: Path) -> None:
    other = SqliteStore(path)
    polls = [Poll(pool, at, request()) for at in [store, other] * 10]
    send(store, *["x"] * 10)
    send(other, *["x"] * 10)
    assert [poll.texts() for poll in polls] == [["x"]] * 20
    other.close()


def test_a_reader_whose_message_is_taken_by_another_gets_a_later_one(
    pool: ThreadPoolExecutor, store: SqliteStore, path: Path
) -> None:
    """Take messages before the woken readers can; then send as many again, so that each reader gets one."""
    other = SqliteStore(path, pollers=64)
    total_taken = 0
    for _ in range(15):
        polls = [Poll(pool, at, request()) for at in [store, other] * 4]
        takers = [pool.submit(take, at, 2) for at in [store, other] * 2]
        for number in range(8):
            [store, other][number % 2].send("q", [new("x", **({"key": "k"} if number % 3 else {"delay": 0.001}))])
        taken = sum(len(taker.result(LONG)) for taker in takers)
        send(store, *["x"] * taken)
        assert [poll.texts() for poll in polls] == [["x"]] * 8
        total_taken += taken
    other.close()


def test_waiting_uses_little_processor_time(pool: ThreadPoolExecutor, store: SqliteStore) -> None:
    polls = [Poll(pool, store, request(wait=1)) for _ in range(20)]
    before = time.process_time()
    assert [poll.texts() for poll in polls] == [[]] * 20
    assert time.process_time() - before < 0.3  # a busy loop would use the whole second
