"""Rows 4 and 20 of what must survive: SQLite's write-ahead log cut anywhere, and its size."""

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

from storage.sqlite import upkeep as sqlite_upkeep
from storage.sqlite.disk.file import MAX_WAL
from storage.sqlite.maintenance import check
from storage.sqlite.store import SqliteStore
from tests.support.connections import on_each_connection
from tests.support.figures import Tell
from tests.support.live import LiveServer, await_true
from tests.support.load import Connection, Load
from tests.support.shorthand import lease, peek, send, take

LONG = [pytest.mark.slow, pytest.mark.torture]
MB = 1024 * 1024
HEADER, FRAME = 32, 24 + 4096  # bytes of the log: at its beginning, and of each page in it


# Row 4: a log of which not everything is there.


class Journal:
    """A database's two files as a crash leaves them, and how long the log was after each commit."""

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
        """Each is one commit that writes further into the log."""
        for number in range(25):
            yield partial(send, store, f"one {number}")
            yield partial(send, store, *(f"{number}/{n}" for n in range(20)))
            yield partial(send, store, f"{number} long ".ljust(9_000, "."))
            yield lambda: take(store, 3)
            yield lambda: receipts.extend(held.receipt for held in lease(store, 5))
            yield lambda: store.ack(receipts[-5:])

    def expected(self, length: int) -> list[str]:
        """The texts that are there when the log holds these many bytes: what was committed in them, no more."""
        commits = sum(committed <= length for committed in self.lengths)
        return self.states[commits - 1] if commits else []

    def crashed(self, spoil: Callable[[bytearray], object]) -> Path:
        """A copy whose log is spoilt."""
        copy = self.directory / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        shutil.copyfile(self.directory / "crashed-queue.db", copy / "queue.db")
        log = bytearray((self.directory / "crashed-queue.db-wal").read_bytes())
        spoil(log)
        (copy / "queue.db-wal").write_bytes(log)
        return copy / "queue.db"

    def places(self, count: int) -> list[int]:
        """Bytes of the log, by chance, and all about the ends of frames and commits that chance picks."""
        end = self.lengths[-1]
        chance = random.Random(4)
        frames = [HEADER + FRAME * chance.randrange(end // FRAME) for _ in range(count // 6)]
        edges = frames + chance.choices(self.lengths, k=count // 6) + [0, 1, HEADER - 1, HEADER, end - 1, end]
        near = sorted({min(end, max(0, edge + by)) for edge in edges for by in (-1, 0, 1)})
        return chance.sample(near, min(len(near), count // 2)) + [chance.randrange(end) for _ in range(count // 2)]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path)
    assert journal.lengths == sorted(set(journal.lengths))  # it was not begun anew meanwhile
    return journal


@pytest.mark.parametrize("cuts", [40, pytest.param(1_000, marks=LONG)])
def test_a_log_cut_at_any_byte_opens_to_what_was_committed_before_it__row_4(
    cuts: int, journal: Journal, tell: Tell
) -> None:
    found = Counter[str]()
    for place in (places := journal.places(cuts)):
        database = journal.crashed(partial(_cut, place=place))
        found += _compared(database, journal.expected(place))
    tell(fault="log cut at a byte", times=len(places), **{name: found[name] for name in COMPARED})
    assert found.keys() == {"acknowledged"}


@pytest.mark.parametrize("holes", [15, pytest.param(300, marks=LONG)])
def test_a_log_with_a_hole_opens_to_what_was_committed_before_the_hole__row_4(
    holes: int, journal: Journal, tell: Tell
) -> None:
    """The disk had written the sectors behind, and not yet this one, when the power went."""
    log = (journal.directory / "crashed-queue.db-wal").read_bytes()
    sectors = [place // 512 * 512 for place in journal.places(holes * 2)]
    found = Counter[str]()
    for sector in (places := [sector for sector in sectors if any(log[sector : sector + 512])][:holes]):
        database = journal.crashed(partial(_zero, place=sector))
        found += _compared(database, journal.expected(_frame_of(sector)))
    tell(fault="hole in the log", times=len(places), **{name: found[name] for name in COMPARED})
    assert found.keys() == {"acknowledged"}


def _cut(log: bytearray, place: int) -> None:
    del log[place:]


def _zero(log: bytearray, place: int) -> None:
    assert any(log[place : place + 512]), "there is nothing to lose in this sector"
    log[place : place + 512] = bytes(512)


def _frame_of(place: int) -> int:
    """Where the frame that has this byte begins."""
    return 0 if place < HEADER else HEADER + (place - HEADER) // FRAME * FRAME


COMPARED = ["acknowledged", "lost", "unexpected", "duplicated", "disordered"]


def _compared(database: Path, texts: list[str]) -> Counter[str]:
    """What is there against what was committed; the file is sound, and goes on."""
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
def test_the_log_stays_small_however_long_writers_readers_and_polls_go_on__row_20(
    seconds: float, tmp_path: Path, tell: Tell
) -> None:
    with LiveServer() as server, Load(server.port, tmp_path) as load, ThreadPoolExecutor(8) as pool:
        load.write(2, batch=50).read(lease=30.0, batch=100).read(lease=30.0, batch=100)
        log = Path(f"{server.database}-wal")
        await_true(lambda: _times_begun_anew(log) > 0)
        before, most, ends = _times_begun_anew(log), 0, time.monotonic() + seconds
        polls = [pool.submit(_look_on, server, ends) for _ in range(8)]
        while time.monotonic() < ends:
            most = max(most, log.stat().st_size)
            time.sleep(0.02)
        await_true(lambda: _times_begun_anew(log) - before >= 2)
        times, most = _times_begun_anew(log) - before, max(most, log.stat().st_size)
        for poll in polls:
            poll.result()
        verdict = load.finish()
    fault = f"load for {seconds:g} s: the log at most {most / MB:.1f} MB, begun anew"
    tell(fault=fault, times=times, **verdict.figures)
    assert verdict.faultless, verdict
    assert most < 16 * MB


@pytest.mark.parametrize("seconds", [1.0, pytest.param(60.0, marks=LONG)])
def test_the_log_is_bounded_again_once_a_reader_goes_that_held_it_under_load__row_20(
    seconds: float, tmp_path: Path, tell: Tell
) -> None:
    with LiveServer() as server, Load(server.port, tmp_path) as load:
        log = Path(f"{server.database}-wal")
        load.write(2, batch=10).read(lease=30.0, batch=100)
        with closing(apsw.Connection(str(server.database))) as reader:
            await_true(lambda: log.stat().st_size > 0)
            reader.execute("BEGIN; SELECT count(*) FROM messages").fetchall()
            time.sleep(seconds)
            await_true(lambda: log.stat().st_size > 5 * MB)  # more than it is let grow to when nobody holds it
            held, before = log.stat().st_size, _times_begun_anew(log)
            reader.execute("COMMIT")
        await_true(lambda: _times_begun_anew(log) > before and log.stat().st_size <= MAX_WAL)
        after = log.stat().st_size
        verdict = load.finish()
    fault = f"reader open for {seconds:g} s: the log {held / MB:.1f} MB, then {after / MB:.1f} MB"
    tell(fault=fault, times=1, **verdict.figures)
    assert verdict.faultless, verdict


def test_a_grown_log_is_cut_although_nothing_is_written_any_more__row_20(
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
        time.sleep(1.2)  # upkeep comes by, and cannot cut it yet …
        assert take(store)  # … and holds nobody up
        assert time.monotonic() - began < 2.0
    await_true(lambda: log.stat().st_size == 0)
    assert len(peek(store)) == 19
    store.close()


def test_a_file_that_has_emptied_is_cut_although_a_reader_held_its_end_meanwhile(
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
        await_true(lambda: next(statements) > so_far + 200)  # upkeep has done all it does, more than once
        assert path.stat().st_size == full
        reader.execute("COMMIT")  # and nothing is written any more
        await_true(lambda: path.stat().st_size < full / 2)


def _times_begun_anew(log: Path) -> int:
    """SQLite counts its checkpoints in the log's header (https://sqlite.org/fileformat2.html#walformat)."""
    with log.open("rb") as file:
        return int.from_bytes(file.read(HEADER)[12:16], "big")


def _look_on(server: LiveServer, ends: float) -> None:
    """A reader that polls an empty queue, looks into a full one, and asks how all are."""
    connection = Connection(server.port)
    while time.monotonic() < ends and connection.open():
        for path in ("/queues/empty/messages?wait=0.2", "/queues/load/peek?limit=500", "/queues"):
            connection.ask("GET", path)
    connection.close()
