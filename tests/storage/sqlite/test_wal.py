"""Test rows 4 and 20 of docs/reliability.md: a log cut anywhere, and the size of the log and of a commit."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path

import apsw
import pytest

from storage.model import IdempotencyKey, Message, Receive
from storage.sqlite import upkeep as sqlite_upkeep
from storage.sqlite.disk.file import MAX_WAL
from storage.sqlite.maintenance import check
from storage.sqlite.store import SqliteStore
from tests.support.connections import on_each_connection
from tests.support.engines import FakeClock
from tests.support.figures import AddRow
from tests.support.live import LiveServer, await_true
from tests.support.load import Connection, Load
from tests.support.shorthand import configure, lease, new, peek, send, stats, take

LONG = [pytest.mark.slow, pytest.mark.torture]
MB = 1024 * 1024
HEADER, FRAME = 32, 24 + 4096  # bytes of the log: its header, and the header of each page


# Row 4: an incomplete log.


class Journal:
    """A database's two files after a crash, and the length of the log after each commit."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lengths: list[int] = []
        self.states: list[list[str]] = []  # the texts in the queue, after each commit
        store = SqliteStore(directory / "queue.db")
        try:
            log = directory / "queue.db-wal"
            receipts: list[str] = []
            for step in self._steps(store, receipts):
                step()
                self.lengths.append(log.stat().st_size)
                self.states.append(peek(store))
            for name in ("queue.db", "queue.db-wal"):
                shutil.copyfile(directory / name, directory / f"crashed-{name}")
        finally:
            store.close()

    @staticmethod
    def _steps(store: SqliteStore, receipts: list[str]) -> Iterator[Callable[[], object]]:
        """Return the steps; each is one commit that appends to the log."""
        for number in range(25):
            yield partial(send, store, f"one {number}")
            yield partial(send, store, *(f"{number}/{n}" for n in range(20)))
            yield partial(send, store, f"{number} long ".ljust(9_000, "."))
            yield lambda: take(store, 3)
            yield lambda: receipts.extend(held.receipt for held in lease(store, 5))
            yield lambda: store.ack(receipts[-5:])

    def expected(self, length: int) -> list[str]:
        """Return the texts that these many bytes of the log contain: the complete commits in them."""
        commits = sum(committed <= length for committed in self.lengths)
        return self.states[commits - 1] if commits else []

    def crashed(self, spoil: Callable[[bytearray], object]) -> Path:
        """Return a copy with a damaged log."""
        copy = self.directory / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        shutil.copyfile(self.directory / "crashed-queue.db", copy / "queue.db")
        log = bytearray((self.directory / "crashed-queue.db-wal").read_bytes())
        spoil(log)
        (copy / "queue.db-wal").write_bytes(log)
        return copy / "queue.db"

    def places(self, count: int) -> list[int]:
        """Return random places in the log, and all places around the ends of random frames and commits."""
        end = self.lengths[-1]
        chance = random.Random(4)
        frames = [HEADER + FRAME * chance.randrange(end // FRAME) for _ in range(count // 6)]
        edges = frames + chance.choices(self.lengths, k=count // 6) + [0, 1, HEADER - 1, HEADER, end - 1, end]
        near = sorted({min(end, max(0, edge + by)) for edge in edges for by in (-1, 0, 1)})
        return chance.sample(near, min(len(near), count // 2)) + [chance.randrange(end) for _ in range(count // 2)]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path)
    assert journal.lengths == sorted(set(journal.lengths))  # it was not restarted meanwhile
    return journal


@pytest.mark.parametrize("cuts", [40, pytest.param(1_000, marks=LONG)])
def test_a_log_cut_at_any_byte_opens_with_the_commits_before_it__row_4(
    cuts: int, journal: Journal, add_row: AddRow
) -> None:
    found = Counter[str]()
    for place in (places := journal.places(cuts)):
        database = journal.crashed(partial(_cut, place=place))
        found += _compared(database, journal.expected(place))
    add_row(fault="log cut at a byte", times=len(places), **{name: found[name] for name in COMPARED})
    assert found.keys() == {"acknowledged"}


@pytest.mark.parametrize("holes", [15, pytest.param(300, marks=LONG)])
def test_a_log_with_a_hole_opens_with_the_commits_before_it__row_4(
    holes: int, journal: Journal, add_row: AddRow
) -> None:
    """The disk had written later sectors, but not this one, when the power failed."""
    log = (journal.directory / "crashed-queue.db-wal").read_bytes()
    sectors = [place // 512 * 512 for place in journal.places(holes * 2)]
    found = Counter[str]()
    for sector in (places := [sector for sector in sectors if any(log[sector : sector + 512])][:holes]):
        database = journal.crashed(partial(_zero, place=sector))
        found += _compared(database, journal.expected(_frame_of(sector)))
    add_row(fault="hole in the log", times=len(places), **{name: found[name] for name in COMPARED})
    assert found.keys() == {"acknowledged"}


def _cut(log: bytearray, place: int) -> None:
    del log[place:]


def _zero(log: bytearray, place: int) -> None:
    assert any(log[place : place + 512]), "there is nothing to lose in this sector"
    log[place : place + 512] = bytes(512)


def _frame_of(place: int) -> int:
    """Return the start of the frame that contains this byte."""
    return 0 if place < HEADER else HEADER + (place - HEADER) // FRAME * FRAME


COMPARED = ["acknowledged", "lost", "unexpected", "duplicated", "disordered"]


def _compared(database: Path, texts: list[str]) -> Counter[str]:
    """Compare the messages with the commits; assert that the file is sound and writable."""
    assert check(database).startswith("ok")
    store = SqliteStore(database)
    try:
        there = peek(store)
        (number,) = send(store, "goes on")
        assert peek(store) == [*there, "goes on"]
        assert number > max((message.id for message in store.peek("q", limit=1)), default=0) or not there
    finally:
        store.close()
    known = [text for text in there if text in texts]
    return +Counter(
        acknowledged=len(texts),
        lost=len(set(texts) - set(there)),
        unexpected=len(set(there) - set(texts)),
        duplicated=len(there) - len(set(there)),
        disordered=known != sorted(known, key=texts.index),
    )


# Row 20: how large it gets.


@pytest.mark.parametrize("seconds", [1.5, pytest.param(45.0, marks=LONG)])
def test_the_log_stays_small_during_long_writes_reads_and_polls__row_20(
    seconds: float, tmp_path: Path, add_row: AddRow
) -> None:
    with LiveServer() as server, Load(server.port, tmp_path) as load, ThreadPoolExecutor(8) as pool:
        load.write(2, batch=50).read(lease=30.0, batch=100).read(lease=30.0, batch=100)
        log = Path(f"{server.database}-wal")
        await_true(lambda: _restarts_of_the_log(log) > 0)
        before, most, ends = _restarts_of_the_log(log), 0, time.monotonic() + seconds
        polls = [pool.submit(_poll_and_peek, server, ends) for _ in range(8)]
        while time.monotonic() < ends:
            most = max(most, log.stat().st_size)
            time.sleep(0.02)
        await_true(lambda: _restarts_of_the_log(log) - before >= 2)
        times, most = _restarts_of_the_log(log) - before, max(most, log.stat().st_size)
        for poll in polls:
            poll.result()
        verdict = load.finish()
    fault = f"load for {seconds:g} s: the log at most {most / MB:.1f} MB, begun anew"
    add_row(fault=fault, times=times, **verdict.figures)
    assert verdict.faultless, verdict
    assert most < 16 * MB


@pytest.mark.parametrize("seconds", [1.0, pytest.param(60.0, marks=LONG)])
def test_the_log_shrinks_after_a_long_read_under_load_ends__row_20(
    seconds: float, tmp_path: Path, add_row: AddRow
) -> None:
    with LiveServer() as server, Load(server.port, tmp_path) as load:
        log = Path(f"{server.database}-wal")
        load.write(2, batch=10).read(lease=30.0, batch=100)
        with closing(apsw.Connection(str(server.database))) as reader:
            await_true(lambda: log.stat().st_size > 0)
            reader.execute("BEGIN; SELECT count(*) FROM messages").fetchall()
            time.sleep(seconds)
            await_true(lambda: log.stat().st_size > 5 * MB)  # more than its limit without a reader
            held, before = log.stat().st_size, _restarts_of_the_log(log)
            reader.execute("COMMIT")
        await_true(lambda: _restarts_of_the_log(log) > before and log.stat().st_size <= MAX_WAL)
        after = log.stat().st_size
        verdict = load.finish()
    fault = f"reader open for {seconds:g} s: the log {held / MB:.1f} MB, then {after / MB:.1f} MB"
    add_row(fault=fault, times=1, **verdict.figures)
    assert verdict.faultless, verdict


def test_a_grown_log_is_truncated_without_further_writes__row_20(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_upkeep, "MAX_WAL", MB)
    store = SqliteStore(tmp_path / "queue.db")
    log = tmp_path / "queue.db-wal"
    with closing(apsw.Connection(str(tmp_path / "queue.db"))) as reader:
        reader.execute("BEGIN; SELECT count(*) FROM messages").fetchall()
        for number in range(20):
            send(store, str(number).ljust(500_000, "."))
        assert log.stat().st_size > 10 * MB
        began = time.monotonic()
        time.sleep(1.2)  # upkeep runs, and cannot truncate it yet …
        assert take(store)  # … and delays no client
        assert time.monotonic() - began < 2.0
    await_true(lambda: log.stat().st_size == 0)
    assert len(peek(store)) == 19
    store.close()


def test_an_emptied_file_is_truncated_after_a_reader_held_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_upkeep, "UPKEEP_EVERY", 0.01)
    path, statements = tmp_path / "queue.db", count()
    with (
        on_each_connection(lambda connection: connection.set_exec_trace(lambda *_: next(statements) >= 0)),
        closing(SqliteStore(path)) as store,
        closing(apsw.Connection(str(path))) as reader,
        closing(apsw.Connection(str(path))) as another,
    ):
        send(store, *["x" * 10_000] * 1_000)
        another.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        full = path.stat().st_size
        assert full > 9 * MB
        reader.execute("BEGIN; SELECT count(*) FROM queues").fetchall()
        assert len(take(store, 1_000)) == 1_000
        await_true(lambda: another.pragma("freelist_count") <= sqlite_upkeep.FREE_KEPT)
        so_far = next(statements)
        await_true(lambda: next(statements) > so_far + 200)  # upkeep has run completely more than once
        assert path.stat().st_size == full
        reader.execute("COMMIT")  # without further writes
        await_true(lambda: path.stat().st_size < full / 2)


# The pages that a commit appends.


@pytest.mark.parametrize("is_keyed", [False, True])
def test_a_commit_of_one_message_changes_few_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_keyed: bool
) -> None:
    monkeypatch.setattr(sqlite_upkeep, "UPKEEP_EVERY", 3_600.0)
    log, keys, held = tmp_path / "queue.db-wal", count(), list[Message]()
    with closing(SqliteStore(tmp_path / "queue.db")) as store:

        def key() -> IdempotencyKey | None:
            return IdempotencyKey(str(next(keys)), b"") if is_keyed else None

        def pages(do: Callable[[], object]) -> int:
            before = log.stat().st_size
            do()
            return (log.stat().st_size - before) // FRAME

        send(store, "first")
        send(store, "second")
        found = {
            "send": pages(lambda: store.send("q", [new("third")], key())),
            "lease": pages(lambda: held.extend(store.receive(Receive(("q",), lease=60, holder="shop"), key()))),
            "pop": pages(lambda: store.receive(Receive(("q",)), key())),
            "ack": pages(lambda: store.settle(str(held[0].receipt), once=key())),
        }
    more = 1 if is_keyed else 0
    # The queue's row, the message's row, and an entry for its place in the queue, among the ready ones or the leases.
    assert found == {"send": 5 + more, "lease": 4 + more, "pop": 4 + more, "ack": 4 + more}


def test_expired_keys_are_forgotten_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_upkeep, "UPKEEP_EVERY", 0.01)
    monkeypatch.setattr(sqlite_upkeep, "CHUNK", 3)
    clock = FakeClock()
    with closing(SqliteStore(tmp_path / "queue.db", clock=clock)) as store:
        configure(store, "kept", dedup_window=3_600)
        for number in range(10):
            for queue in ("q", "kept", "another"):
                store.send(queue, [new()], IdempotencyKey(str(number), b""))
        clock.advance(301)
        with closing(apsw.Connection(str(tmp_path / "queue.db"))) as reader:
            await_true(lambda: reader.execute("SELECT count(*) FROM replies").get == 10)
        assert len(store.send("kept", [new()], IdempotencyKey("9", b"")).ids) == 1
        assert stats(store, "kept").ready == 10


def _restarts_of_the_log(log: Path) -> int:
    """Return the checkpoint count of the log's header (https://sqlite.org/fileformat2.html#walformat)."""
    with log.open("rb") as file:
        return int.from_bytes(file.read(HEADER)[12:16], "big")


def _poll_and_peek(server: LiveServer, ends: float) -> None:
    """Poll an empty queue, peek at a full one, and list all queues."""
    connection = Connection(server.port)
    while time.monotonic() < ends and connection.open():
        for path in ("/queues/empty/messages?wait=0.2", "/queues/load/peek?limit=500", "/queues"):
            connection.ask("GET", path)
    connection.close()
