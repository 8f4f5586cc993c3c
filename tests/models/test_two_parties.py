"""Test random programs of two parties: calls of one in the middle of calls of the other."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from storage import maintenance_for
from storage.model import Receive
from storage.postgres.store import PostgresStore
from storage.store import Engine
from tests.models.between import Gate, around_transactions
from tests.models.model_queue import SCRATCH
from tests.models.parties import BY_ID, DEAD, LIVE, Action, Row, World, draw, restock, rows_of
from tests.support.engines import ENGINES, PACE, FakeClock, postgres_database

STEPS = 25  # of a program
CHUNKS = ("CHUNK", "MOVED", "SHARE", "LONGEST")  # the constants for the messages of one transaction
SMALL = {**dict.fromkeys(CHUNKS, 12), "ACKED_AT_ONCE": 2, "SHORTEST": 2, "UPKEEP_EVERY": 3_600.0}
COMMON = [
    "send",
    "send",
    "receive",
    "receive",
    "receive",
    "ack",
    "release",
    "extend",
    "extend_many",
    "reject",
    "redrive",
    *BY_ID,
]
# The first party makes more of the calls that are several transactions.
FIRSTS = [
    *COMMON,
    "redrive",
    "redrive",
    "redrive",
    "purge",
    "purge",
    "ack_many",
    "ack_many",
    "transact",
    "delete_queue",
    "configure",
]
SECONDS = [*COMMON, "purge", "redrive", "ack_many", "transact", "delete_queue", "configure"]
DRAWN_QUEUES = [*LIVE, *LIVE, DEAD]
READ, LEASE = (Action("receive", (("a",), 2, lease)) for lease in (None, 10.0))
READ_DEAD, LEASE_DEAD = (Action("receive", ((DEAD,), 2, lease)) for lease in (None, 10.0))
_numbers = count(1)


@pytest.fixture(autouse=True)
def many_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit verbs to few messages in one transaction, and disable upkeep."""
    _set_sizes(monkeypatch, SMALL)


@pytest.mark.parametrize("chunk", [3, 12])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_second_party_between_two_transactions_breaks_no_guarantee__row_32(
    engine: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_sizes(monkeypatch, dict.fromkeys(CHUNKS, chunk))
    for seed in range(1 + 3 // PACE[engine]):
        _between_transactions(engine, seed, STEPS)


@pytest.mark.parametrize("chunk", [3, 12])
def test_a_second_party_between_two_statements_breaks_no_guarantee__row_32(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_sizes(monkeypatch, dict.fromkeys(CHUNKS, chunk))
    _between_statements(0, STEPS)


@pytest.mark.slow
@pytest.mark.torture
@pytest.mark.parametrize("seed", range(100, 108))
@pytest.mark.parametrize("chunk", [3, 12])
def test_long_programs_of_two_parties_keep_every_guarantee__row_32(
    chunk: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_sizes(monkeypatch, dict.fromkeys(CHUNKS, chunk))
    for engine in ENGINES:
        _between_transactions(engine, seed, 200)
    _between_statements(seed, 200)


def test_concurrent_readers_keep_the_order_of_a_key() -> None:
    """The second reader leases and releases messages that the first has seen and not yet locked."""

    def take_and_give_back() -> None:
        for message in reversed(meeting.second.receive(Receive(("a",), 2, 10.0))):
            meeting.second.release(str(message.receipt))

    with _meeting() as meeting:
        meeting.alone("send", "a", [{"text": f"A{number}", "key": "k"} for number in range(1, 4)])
        for passing in range(8):
            meeting.between_statements(Action("transact", ([], "a", [], 3)), take_and_give_back, passing)
            meeting.world.clock.advance(20)


def test_concurrent_redrives_of_keyed_dead_letters_of_two_queues_do_not_deadlock() -> None:
    with _meeting() as meeting:
        for passing in range(3, 12):
            for queue in LIVE:
                meeting.alone("purge", queue)
                meeting.alone("send", queue, [{"text": f"{queue}{passing}{key}", "key": key} for key in "kl"])
                meeting.die(queue)
            meeting.between_statements(Action("redrive", (DEAD, None)), [Action("redrive", ("b", None))], passing)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("other", [Action("purge", ("a",)), READ, LEASE], ids=str)
def test_a_purge_removes_all_earlier_messages_although_another_call_intervenes(
    other: Action, engine: str, tmp_path: Path
) -> None:
    with _pair(engine, tmp_path) as pair:
        for number in (3, 13, 40):
            for visit in range(4):
                pair.alone("send", "a", [{"text": f"{number} {visit} {n}"} for n in range(number)])
                pair.between_transactions(Action("purge", ("a",)), {visit: other})


@pytest.mark.parametrize("other", [Action("purge", ("a",)), READ, LEASE], ids=str)
def test_a_purge_removes_all_earlier_messages_although_another_call_is_under_way(other: Action) -> None:
    with _meeting() as meeting:
        for passing in range(6):
            meeting.alone("send", "a", [{"text": f"{passing} {number}"} for number in range(40)])
            meeting.between_statements(other, [Action("purge", ("a",))], passing)
            meeting.alone("send", "a", [{"text": f"{passing} again {number}"} for number in range(40)])
            meeting.between_statements(Action("purge", ("a",)), [other], passing)


@pytest.mark.parametrize(
    "other", [Action("redrive", (DEAD, None)), Action("redrive", ("a", None)), READ_DEAD, LEASE_DEAD], ids=str
)
def test_a_redrive_moves_all_earlier_messages_although_another_call_is_under_way(other: Action) -> None:
    redrive = Action("redrive", (DEAD, None))
    with _meeting() as meeting:
        for passing in range(6):
            for turn, (first, second) in enumerate(((other, redrive), (redrive, other))):
                meeting.alone("purge", "a")
                meeting.alone("send", "a", [{"text": f"{passing} {turn} {number}"} for number in range(20)])
                meeting.die("a")
                meeting.between_statements(first, [second], passing)


class Pair:
    """Two parties on the same data, each with its own store, like two processes."""

    def __init__(self, clock: FakeClock, look: Callable[[], list[Row]], first: Engine, second: Engine) -> None:
        self.world = World(clock, look)
        self.first = first
        self.second = second
        for queue, changes in (("a", {"dead_letter_queue": DEAD}), ("b", {"dead_letter_queue": DEAD}), (DEAD, {})):
            self.alone("configure", queue, changes)

    def alone(self, verb: str, *arguments: Any) -> None:
        self.world.run("one", Action(verb, arguments), self.second)
        self.world.judge(self.second)

    def die(self, queue: str) -> None:
        """Dead-letter messages of a queue."""
        self.alone("receive", (queue,), 40, 10.0)
        for deliveries in list(self.world.deliveries.values()):
            if (last := deliveries[-1]).queue == queue and last.receipt and not last.released:
                self.world.run("one", Action("reject", (last.receipt,)), self.second)
        self.world.judge(self.second)

    def between_transactions(self, leading: Action, following: Mapping[int, Action]) -> None:
        """Let the second party act before and after transactions of the first one's call, by their number."""
        visits = count()

        def visit() -> None:
            if (action := following.get(next(visits))) is not None:
                self.world.run("the second party", action, self.second)

        with around_transactions(self.first, visit):
            self.world.run("the first party", leading, self.first)
        self.world.judge(self.second)


class Meeting(Pair):
    """Two parties on one PostgreSQL, of which the first can be stopped within a transaction."""

    def __init__(self, gate: Gate, clock: FakeClock) -> None:
        self._gate = gate
        first, second = (PostgresStore(gate.url(party), clock=clock) for party in (Gate.FIRST, Gate.SECOND))
        super().__init__(clock, gate.rows, first, second)

    def between_statements(
        self, leading: Action, following: Sequence[Action] | Callable[[], None], passing: int
    ) -> None:
        """Let the second party act while the first one's call waits between two statements."""

        def go_first() -> None:
            self.world.run("the first party", leading, self.first)

        def go_second() -> None:
            if callable(following):
                following()
                return
            for action in following:
                self.world.run("the second party", action, self.second)

        self._gate.meet(go_first, self.first, go_second, passing)
        self.world.judge(self.second)


@contextmanager
def _pair(engine: str, directory: Path) -> Iterator[Pair]:
    clock = FakeClock()
    with closing(ENGINES[engine](directory, clock)) as first, closing(ENGINES[engine](directory, clock)) as second:
        pair = Pair(clock, lambda: rows_of(second), first, second)
        yield pair
        pair.world.drain(second)
    _check(f"sqlite:///{directory / 'queue.db'}" if engine == "sqlite" else postgres_database().url_for(directory))


@contextmanager
def _meeting() -> Iterator[Meeting]:
    server, clock, name = postgres_database().server, FakeClock(), f"parties-{next(_numbers)}"
    url = server.create_database(name)
    server.sql(f"ALTER DATABASE \"{name}\" SET deadlock_timeout = '100ms'")
    PostgresStore(url, clock=clock).close()
    with Gate(url) as gate:
        meeting = Meeting(gate, clock)
        with closing(meeting.first), closing(meeting.second):
            yield meeting
            meeting.world.drain(meeting.second)
        _check(url)
        assert gate.deadlocks() == 0


def _set_sizes(monkeypatch: pytest.MonkeyPatch, sizes: Mapping[str, float]) -> None:
    for module in [module for name, module in sys.modules.items() if name.startswith("storage.")]:
        for name in sizes.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, sizes[name])


def _between_transactions(engine: str, seed: int, steps: int) -> None:
    chance = random.Random(seed)
    with (
        _replayable(f"{engine}, seed {seed}"),
        TemporaryDirectory(prefix="queue-parties-", dir=SCRATCH) as scratch,
        _pair(engine, Path(scratch)) as pair,
    ):
        for step in range(steps):
            restock(chance, pair.world, pair.second)
            leading, others = _drawn(chance, pair, 3)
            with _replayable(f"step {step}"):
                pair.between_transactions(leading, {chance.randrange(6): action for action in others})
            pair.world.clock.advance(chance.choice([0, 0, 0, 3, 12]))


def _between_statements(seed: int, steps: int) -> None:
    chance = random.Random(seed)
    with _replayable(f"seed {seed}"), _meeting() as meeting:
        for step in range(steps):
            restock(chance, meeting.world, meeting.second)
            leading, others = _drawn(chance, meeting, 2)
            with _replayable(f"step {step}"):
                meeting.between_statements(leading, others, chance.choice([0, 1, 2, 3, 5, 8]))
            meeting.world.clock.advance(chance.choice([0, 0, 0, 3, 12]))


def _drawn(chance: random.Random, pair: Pair, most: int) -> tuple[Action, list[Action]]:
    """Draw the first party's call and the second's, mostly about the same queue."""
    queue = chance.choice(DRAWN_QUEUES)
    others = chance.choice([queue, queue, *DRAWN_QUEUES])
    leading = draw(chance, pair.world, FIRSTS, queue)
    return leading, [draw(chance, pair.world, SECONDS, others) for _ in range(chance.randint(1, most))]


def _check(url: str) -> None:
    maintenance, place = maintenance_for(url)
    maintenance.check(place)


@contextmanager
def _replayable(where: str) -> Iterator[None]:
    """Name the program and the step that a failure is to be replayed by."""
    try:
        yield
    except Exception as fault:
        raise AssertionError(f"{where}: {fault}") from fault
