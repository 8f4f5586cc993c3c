"""Test `python -m storage migrate`: everything arrives despite kills, and nothing is delivered twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from itertools import count, islice
from pathlib import Path

import apsw
import pytest

from storage import open_source, open_store, open_target
from storage.errors import Moved, MoveNotFound, StoreError, UnusableDatabase
from storage.migration import MoveFailed, migrate, reopen
from storage.model import IdempotencyKey, Message, Receive, State
from storage.sqlite.maintenance import backup
from storage.store import Store
from tests.support.figures import AddRow
from tests.support.live import REPOSITORY, LiveServer, await_true
from tests.support.load import Load
from tests.support.postgres import PgBouncer, Postgres
from tests.support.shorthand import configure, lease_one, new, peek, send, stats, take

LONG = [pytest.mark.slow, pytest.mark.torture]
ONCE = IdempotencyKey("a key", b"its fingerprint")
TOGETHER = [("q", new("sent")), ("other", new("together")), ("q", new("at once"))]


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Return the path of a file that does not exist yet."""
    return f"sqlite:///{tmp_path}/source.db"


@pytest.fixture(params=["sqlite", "postgres"])
def new_target(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Return a function that names empty databases of each engine."""
    numbers = count(1)
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path}/target-{next(numbers)}.db"
    postgres: Postgres = request.getfixturevalue("postgres")
    return lambda: postgres.create_database(f"{tmp_path.name}-{next(numbers)}")


@pytest.fixture
def target(new_target: Callable[[], str]) -> str:
    return new_target()


@pytest.fixture
def receipts(source: str) -> dict[str, str]:
    """Fill the source with messages of every kind and state; return the receipts of leased ones, by text."""
    with closing(open_store(source)) as store:
        configure(store, "q", max_receives=5, dedup_window=3_600, lease=77, dedup_scope="key")
        configure(store, "graves", paused=True, retention=86_400)
        send(store, "gone 1", "gone 2")
        take(store, 2)
        send(store, *(f"batch {number}" for number in range(300)), queue="batches")
        store.receive(Receive(("batches",), 100, 3_600.0, holder="192.0.2.7"))
        take(store, 50, queue="batches")
        send(store, "plain \0 ünï", "")
        send(store, "high", priority=9, attributes={"a": 1, "b": None, "ü": "\0"})
        send(store, "addressed", recipient="r 1")
        send(store, "later", delay=3_600)
        send(store, "mortal", ttl=7_200)
        send(store, "mortal too", ttl=7_200, queue="graves")
        send(store, *(f"in turn {number}" for number in range(4)), key="a key")
        send(store, "deduplicated", dedup_id="d 1", key="d")
        store.send("q", [new("once")], ONCE)
        store.transact([], TOGETHER, None, ONCE)
        send(store, "dies", "waits", queue="other", key="k", priority=3)
        store.reject(lease_one(store, queue="other", seconds=60).receipt)
        store.reject(lease_one(store, queue="other", seconds=60).receipt, "no good")
        send(store, "never seen", queue="deleted")
        store.delete_queue("deleted")
        store.start_move("other", rate=1)
        with suppress(MoveNotFound):  # it may have ended
            store.cancel_move("other", store.moves("other")[0].task)
        held = store.receive(Receive(("q",), 4, 3_600.0, holder="shop"))
        return {message.text: str(message.receipt) for message in held}


def test_a_moved_database_behaves_like_one_that_was_not_moved(
    source: str, target: str, receipts: dict[str, str], tmp_path: Path
) -> None:
    backup(Path(source.removeprefix("sqlite:///")), tmp_path / "copy.db")
    moved = migrate(source, target)
    assert {name: tally.messages for name, tally in moved.items()} == {
        "": 0,
        "batches": 250,
        "graves": 1,
        "other": 1,
        "other.dead": 2,
        "q": 14,
    }
    with closing(open_store(f"sqlite:///{tmp_path}/copy.db")) as copy, closing(open_store(target)) as store:
        assert _behaviour(store, receipts) == _behaviour(copy, receipts)


def _behaviour(store: Store, receipts: dict[str, str]) -> list[object]:
    """Return what a store returns and does, without what is new and random each time."""

    def settled(messages: Sequence[Message]) -> list[Message]:
        return [
            message._replace(receipt=None, leased_until=None, sent_at=0, first_received_at=None) for message in messages
        ]

    results: list[object] = [store.identity, store.moves("other")]
    for queue in store.queues():
        results += [queue._replace(stats=queue.stats._replace(oldest_age=0.0)), store.peek(queue.name)]
        results += [store.peek(queue.name, state=State.DEAD)]
    results += [store.send("q", [new("once")], ONCE), store.transact([], TOGETHER, None, ONCE)]
    results += [send(store, "deduplicated again", dedup_id="d 1", key="d"), send(store, "new")]
    results += [store.ack(list(receipts.values())), store.ack(list(receipts.values()))]
    results += [settled(store.receive(Receive(("q",), 3, 60.0))) for _ in range(3)]
    results += [settled(store.receive(Receive(("q",), 9, recipient="r 1"))), store.redrive("other")]
    results += [settled(store.receive(Receive(("other", "q", "batches"), 500)))]
    results += [queue._replace(stats=queue.stats._replace(oldest_age=0.0)) for queue in store.queues()]
    return results


@pytest.mark.usefixtures("receipts")
def test_moved_times_use_the_wall_clock_at_the_start_of_the_move(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now, as_written = time.time, _times(source)
    reopen(source)
    monkeypatch.setattr(time, "time", lambda: now() + 3_600)  # the clock is set an hour forward …
    begun = _times(source)
    monkeypatch.setattr(time, "time", lambda: now() + 7_200)  # … and another while the move is interrupted
    assert _times(source) == begun
    assert {kind: len(times) for kind, times in begun.items()} == {
        "due": 268, "sent": 268, "arrived": 268, "deduplicated": 1, "replied": 2, "used": 5,
    }  # fmt: skip
    for kind, times in begun.items():
        assert times == [at and pytest.approx(at + 3_600_000, abs=1_000) for at in as_written[kind]], kind


def _times(source: str) -> dict[str, list[int]]:
    """Return the times that a move from the source copies, in ms."""
    with closing(open_source(source)) as contents:
        contents.seal()
        messages = list(contents.messages(0))
        return {
            "due": [message.due_at for message in messages],
            "sent": [message.sent_at for message in messages],
            "arrived": [message.arrived_at for message in messages],
            "deduplicated": [dedup.forget_at for dedup in contents.dedups()],
            "replied": [reply.forget_at for reply in contents.replies()],
            "used": [queue.used_at for queue in contents.queues()],
        }


def test_a_source_refuses_writes_after_a_move_began_and_can_be_reopened(source: str, tmp_path: Path) -> None:
    with closing(open_store(source)) as store:
        send(store, "before", "too")
        held = lease_one(store)
        with pytest.raises(UnusableDatabase, match="does not exist"):
            migrate(source, f"sqlite:///{tmp_path}/no/where.db")
        send(store, "still")  # a move that could not start has sealed nothing
        _begin(source, f"sqlite:///{tmp_path}/target.db")
        for write in (
            lambda: send(store, "after"),
            lambda: send(store, "after", queue="new"),
            lambda: take(store),
            lambda: store.settle(held.receipt),
            lambda: store.extend(held.receipt, 60),
            lambda: store.purge("q"),
            lambda: store.delete_queue("q"),
            lambda: configure(store, paused=True),
        ):
            with pytest.raises(Moved):
                write()
        await_true(lambda: not _is_ready(store))  # a second after its last commit
        assert peek(store) == ["before", "too", "still"]
        reopen(source)
        store.check_ready()
        store.settle(held.receipt)
        send(store, "after")
        assert take(store, 9) == ["too", "still", "after"]


def test_a_source_whose_messages_have_moved_is_never_opened_again(source: str, target: str) -> None:
    with closing(open_store(source)) as store:
        send(store, "moved")
        migrate(source, target)
        with pytest.raises(StoreError, match="were moved"):
            reopen(source)
        with pytest.raises(Moved):
            take(store)
    with pytest.raises(StoreError):
        migrate(source, target)
    with closing(open_store(target)) as store:
        assert take(store, 2) == ["moved"]


def test_a_moved_database_is_not_moved_again(source: str, new_target: Callable[[], str]) -> None:
    with closing(open_store(source)) as store:
        send(store, "once")
    first, second = new_target(), new_target()
    migrate(source, first)
    with pytest.raises(MoveFailed, match="were moved already"):
        migrate(source, second)
    with closing(open_store(first)) as store:
        assert take(store, 2) == ["once"]


def test_a_move_refuses_a_target_with_messages(source: str, target: str) -> None:
    with closing(open_store(source)) as store:
        send(store, "moved")
    with closing(open_store(target)) as store:
        send(store, "precious")
    with pytest.raises(UnusableDatabase):
        migrate(source, target)
    with closing(open_store(source)) as store, closing(open_store(target)) as other:
        assert (take(store, 2), take(other, 2)) == (["moved"], ["precious"])


def test_an_unusable_target_leaves_the_source_unchanged(postgres: Postgres, source: str) -> None:
    postgres.sql("CREATE DATABASE latin OWNER queue ENCODING 'LATIN1' TEMPLATE template0")
    postgres.sql("CREATE DATABASE foreigners")
    postgres.create_database("unsafe")
    postgres.sql("ALTER DATABASE unsafe SET synchronous_commit = off")
    with closing(open_store(source)) as store:
        send(store, "stays")
        for name, reason in (("latin", "LATIN1"), ("foreigners", "CREATE"), ("unsafe", "synchronous_commit")):
            with pytest.raises(UnusableDatabase, match=reason):
                migrate(source, postgres.url(name))
            store.check_ready()
        assert take(store) == ["stays"]


def test_a_node_that_starts_too_early_is_refused_and_does_not_disturb_the_move(postgres: Postgres, source: str) -> None:
    target = postgres.create_database("too-early")
    with closing(open_store(source)) as store:
        send(store, "moved")
    _begin(source, target)
    with pytest.raises(UnusableDatabase):
        open_store(target)
    migrate(source, target)
    with closing(open_store(target)) as store:
        assert take(store, 2) == ["moved"]


def test_a_move_through_a_pooler_leaves_its_sessions_unchanged(postgres: Postgres, source: str) -> None:
    target = postgres.create_database("moved-through-a-pooler")
    with closing(open_store(source)) as store:
        send(store, "moved")
    with PgBouncer(postgres, connections=1) as pooler:
        migrate(source, pooler.url("moved-through-a-pooler"))
        path = pooler.run("psql", "-qAtX", "-d", pooler.url("moved-through-a-pooler"), "-c", "SHOW search_path")
    assert path == '"$user", public\n'
    with closing(open_store(target)) as store:
        assert take(store, 2) == ["moved"]


def test_a_copy_that_differs_is_not_opened(source: str, tmp_path: Path) -> None:
    with closing(open_store(source)) as store:
        send(store, *(str(number) for number in range(20)))
        send(store, "right", queue="other")
    _begin(source, f"sqlite:///{tmp_path}/target.db", copied=15)
    with closing(apsw.Connection(f"{tmp_path}/target.db.part")) as part:
        part.execute("UPDATE messages SET text = 'wrong' WHERE id = 7")
    with pytest.raises(MoveFailed, match=r"differs from the source, in: q$"):
        migrate(source, f"sqlite:///{tmp_path}/target.db")
    assert not (tmp_path / "target.db").exists()
    reopen(source)
    with closing(open_store(source)) as store:
        assert len(take(store, 50)) == 20


def test_the_command_reports_what_it_moved(source: str, target: str, receipts: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "storage", "migrate", source, target], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr  # may say that the tests' server runs with fsync=off
    *queues, total = done.stdout.splitlines()
    assert [(line.split()[0], line.split()[-1]) for line in queues] == [
        ("250", "batches"), ("1", "graves"), ("1", "other"), ("2", "other.dead"), ("14", "q"),
    ]  # fmt: skip
    assert total.split()[:2] == ["268", "messages,"]


def test_only_a_file_is_moved_from(postgres: Postgres, source: str) -> None:
    with pytest.raises(UnusableDatabase, match="cannot move from"):
        migrate(postgres.create_database("not-a-source"), source)


@pytest.mark.parametrize(("messages", "moves"), [(20_000, 1), pytest.param(200_000, 4, marks=LONG)])
def test_a_killed_move_continues_when_it_is_restarted(
    messages: int, moves: int, new_target: Callable[[], str], tmp_path: Path, add_row: AddRow
) -> None:
    kills = 0
    for number in range(moves):
        source, target = f"sqlite:///{tmp_path}/source-{number}.db", new_target()
        with closing(open_store(source)) as store:
            for first in range(0, messages, 10_000):
                send(store, *(str(number) for number in range(first, first + 10_000)))
            held = lease_one(store, seconds=3_600)
        kills += _move_and_kill(source, target)
        with closing(open_store(target)) as store:
            store.settle(held.receipt)
            assert stats(store)[:5] == (messages - 1, 0, 0, 0, 0)
            taken = [text for _ in range(0, messages, 1_000) for text in take(store, 1_000)]
            assert taken == [str(number) for number in range(1, messages)]
            assert send(store, "next") == [messages + 1]
    assert kills >= moves
    add_row(fault=f"migrate killed, {messages:,} messages each there once and in order", times=kills, moves=moves)


def _move_and_kill(source: str, target: str) -> int:
    """Move everything, and kill the command until a move completes; return the number of kills."""
    kills = 0
    while True:
        move = _migrating(source, target)
        await_true(lambda: _is_sealed(source))  # so that the first is not complete before
        time.sleep(random.uniform(0.0, 0.1 * 3**kills))
        move.kill()
        printed = move.communicate()[1].decode()
        if move.returncode == 0:
            return kills
        if move.returncode == 1 and kills:
            assert " already" in printed  # the last was killed after its work and before its report
            return kills
        assert move.returncode == -signal.SIGKILL, printed
        kills += 1


@pytest.mark.slow
def test_a_service_is_moved_under_load_and_loses_nothing(target: str, tmp_path: Path) -> None:
    with LiveServer() as server, Load(server.port, tmp_path / "histories") as load:
        load.write(keyed=True).write(batch=10, keyed=True).read().read(lease=5.0, batch=50)
        load.await_progress()
        move = _migrating(f"sqlite:///{server.database}", target)
        printed = move.communicate(timeout=60)[1]
        assert move.returncode == 0, printed
        server.stop()
        server.environment["QUEUE_DATABASE_URL"] = target
        server.start()
        load.await_progress()
        verdict = load.finish()
    assert verdict.faultless, verdict
    assert (verdict.refused, verdict.unknown) == (0, 0), "with its key, every write is acknowledged in the end"


def _is_ready(store: Store) -> bool:
    try:
        store.check_ready()
    except Moved:
        return False
    return True


def _begin(source: str, target: str, copied: int = 0) -> None:
    """Start a move, and interrupt it when so many messages have been copied."""
    with closing(open_target(target)) as there, closing(open_source(source)) as here:
        there.begin(here.seal())
        there.add_queues(here.queues())
        there.add_messages(list(islice(here.messages(0), copied)))


def _is_sealed(source: str) -> bool:
    with closing(apsw.Connection(source.removeprefix("sqlite:///"))) as connection:
        connection.set_busy_timeout(5_000)  # the last process to close the file locks it briefly
        return bool(connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'move'").get)


def _migrating(source: str, target: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "storage", "migrate", source, target],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
    )
