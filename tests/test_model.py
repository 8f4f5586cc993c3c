"""Random programs against a store and the reference queue: after every step both must look the same."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from storage import sqlite_runs
from storage.errors import MessageNotFound, QueueNotFound, StaleReceipt
from storage.model import NewMessage, Receive, State
from tests.conformance.engines import ENGINES, PACE, FakeClock
from tests.model_queue import Handle, Item, ModelQueue

# In memory where there is such a place: this is about the order of things, not about the disk.
SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None

# Most messages are plain in most respects, most reads unaddressed: programs of nothing but rarities meet no neighbours.
new_messages = st.fixed_dictionaries(
    {
        "key": st.sampled_from([None, "k", "k", "l"]),
        "priority": st.sampled_from([0, 0, 1, 2]),
        "recipient": st.sampled_from([None] * 7 + ["ann"]),
        "delay": st.sampled_from([None] * 5 + [4]),
        "ttl": st.sampled_from([None] * 5 + [3, 7]),
        "dedup_id": st.sampled_from([None] * 7 + ["1", "2"]),
    }
).map(lambda fields: {name: value for name, value in fields.items() if value is not None})
plain_messages: st.SearchStrategy[dict[str, Any]] = st.just({})
durations = st.sampled_from([2, 5, 5, 8])
delays = st.sampled_from([0, 0, 4])
limits = st.sampled_from([1, 1, 2, 3, 5])

VERBS = [
    *["send"] * 3, *["receive"] * 5, *["settle"] * 6, *["settle_many"] * 2, *["advance"] * 3,
    "configure", "redrive", "redrive", "purge",
]  # fmt: skip
SETTLING = ["ack", "extend", "extend", "release", "release", "reject"]

Draw = Callable[..., Any]


class Programs(RuleBasedStateMachine):
    """Steps of a program; each is done to the store and to the model."""

    engine: str
    messages = new_messages

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="queue-model-", dir=SCRATCH)
        self.clock = FakeClock()
        self.store = ENGINES[self.engine](Path(self.directory.name), self.clock)
        self.model = ModelQueue(self.clock.now())
        self.ids: dict[Item, int] = {}
        self.held: list[tuple[str, Handle]] = []
        self.sent = 0
        self.store.configure("q", {})

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    @rule(data=st.data(), verb=st.sampled_from(VERBS))
    def step(self, data: st.DataObject, verb: str) -> None:
        # One rule for all: of several, Hypothesis would leave half out of each program, and so most keep to few states.
        getattr(self, verb)(data.draw)

    def send(self, draw: Draw) -> None:
        messages = []
        for fields in draw(st.lists(self.messages, min_size=1, max_size=5), "batch"):
            self.sent += 1
            messages.append(NewMessage.from_document({"text": f"m{self.sent}", **fields}))
        ids = self.store.send("q", messages)
        for message, number in zip(messages, ids, strict=True):
            assert self.ids.setdefault(self.model.send(message), number) == number

    def receive(self, draw: Draw) -> None:
        self._advance(draw(st.sampled_from([0, 0, 5]), "later"))  # and the store has to see by itself what that did
        limit, recipient = draw(limits, "limit"), draw(st.sampled_from([""] * 5 + ["ann"]), "recipient")
        lease = draw(st.sampled_from([2, 5, 5, 8, None]), "lease")
        got = self.store.receive(Receive(("q",), limit, lease, recipient))
        handles = self.model.receive(limit, lease and lease * 1000, recipient)
        assert [(message.text, message.receive_count) for message in got] == [
            (handle.item.message.text, handle.item.receives) for handle in handles
        ]
        if lease is not None:
            self.held += [(str(message.receipt), handle) for message, handle in zip(got, handles, strict=True)]

    def settle(self, draw: Draw) -> None:
        if not self.held:
            return
        there = [held for held in self.held if held[1].item in self.model.items]
        receipt, handle = draw(st.sampled_from((self.held[-2:] + there[-9:])[::-1]), "held")
        verb, lease, delay = draw(st.sampled_from(SETTLING), "verb"), draw(durations, "s"), draw(delays, "delay")
        store_verbs: dict[str, Callable[[], object]] = {
            "ack": lambda: self.store.settle(receipt),
            "extend": lambda: self.store.extend(receipt, lease),
            "release": lambda: self.store.release(receipt, delay),
            "reject": lambda: self.store.reject(receipt),
        }
        model_verbs: dict[str, Callable[[], None]] = {
            "ack": lambda: self.model.ack(handle.item),
            "extend": lambda: self.model.extend(handle.item, lease * 1000),
            "release": lambda: self.model.release(handle.item, delay * 1000),
            "reject": lambda: self.model.reject(handle.item),
        }
        outcome = self.model.find(handle, to_extend=verb == "extend")
        if outcome == "holds":
            store_verbs[verb]()
            model_verbs[verb]()
        else:
            with pytest.raises(StaleReceipt if outcome == "stale" else MessageNotFound):
                store_verbs[verb]()

    def settle_many(self, draw: Draw) -> None:
        chosen = self.held[-draw(st.integers(1, 8), "how many") :]
        receipts = [receipt for receipt, _ in chosen]
        outcomes = [self.model.find(handle) for _, handle in chosen]
        if not draw(st.booleans(), "all or none"):
            stale, missing = (
                [receipt for receipt, outcome in zip(receipts, outcomes, strict=True) if outcome == what]
                for what in ("stale", "missing")
            )
            assert self.store.ack(receipts) == (outcomes.count("holds"), stale, missing)
        elif set(outcomes) <= {"holds"}:
            self.store.transact(receipts, [])
        else:
            with pytest.raises(StaleReceipt) as refused:
                self.store.transact(receipts, [])
            assert refused.value.index == next(n for n, outcome in enumerate(outcomes) if outcome != "holds")
            return
        for (_, handle), outcome in zip(chosen, outcomes, strict=True):
            if outcome == "holds":
                self.model.ack(handle.item)

    def advance(self, draw: Draw) -> None:
        self._advance(draw(st.sampled_from([1, 2, 3, 3, 5, 5, 400]), "s"))

    def _advance(self, duration: int) -> None:
        self.clock.advance(duration)
        self.model.advance(duration * 1000)

    def configure(self, draw: Draw) -> None:
        self.model.max_receives, self.model.dead_letter_expired = draw(st.integers(0, 3)), draw(st.booleans())
        self.store.configure("q", {name: getattr(self.model, name) for name in ("max_receives", "dead_letter_expired")})

    def redrive(self, draw: Draw) -> None:
        limit = draw(limits, "limit")
        assert self.store.redrive("q", limit) == self.model.redrive(limit)

    def purge(self, draw: Draw) -> None:
        assert self.store.purge("q") == self.model.purge()

    @invariant()
    def the_store_looks_like_the_model(self) -> None:
        self._compare("q", self.model.items)  # first: a look at a queue lets its dead arrive in theirs
        self._compare("q.dead", self.model.dead)
        told = self.store.queue("q").stats
        assert {name: getattr(told, name) for name in ("sent", "received", "acked", "expired", "dead_lettered")} == {
            name: self.model.totals[name] for name in ("sent", "received", "acked", "expired", "dead_lettered")
        }
        assert told.dead == len(self.model.dead)
        oldest = self.model.items[0].sent_at if self.model.items else self.model.now
        assert told.oldest_age == (self.model.now - oldest) / 1000

    def _compare(self, name: str, items: list[Item]) -> None:
        rows = self.store.peek(name, limit=1_000)
        states = [self.model.state(item, items) for item in items]
        assert [(row.text, row.state, row.receive_count) for row in rows] == [
            (item.message.text, state, item.receives) for item, state in zip(items, states, strict=True)
        ]
        try:
            told = self.store.queue(name).stats
        except QueueNotFound:
            assert rows == []
            return
        counts = Counter(states)
        assert (told.ready, told.leased, told.delayed, told.blocked) == (
            counts[State.READY], counts[State.LEASED], counts[State.DELAYED], counts[State.BLOCKED]
        )  # fmt: skip
        assert told.bytes == sum(item.message.size for item in items)


def _run(machine: type[Programs], programs: int, steps: int, *phases: Phase) -> None:
    """The same programs at every run, so that what fails once fails again."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=programs,
            stateful_step_count=steps,
            derandomize=True,
            database=None,
            deadline=None,
            phases=phases,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_random_programs_do_what_the_model_does(engine: str) -> None:
    _run(
        _programs(engine), 150 // PACE[engine], 50, Phase.generate
    )  # to find a short program that fails takes minutes: the slow one does it


@pytest.mark.torture
@pytest.mark.parametrize("engine", ENGINES)
def test_many_long_random_programs_do_what_the_model_does(engine: str) -> None:
    _run(_programs(engine), 600 // PACE[engine], 60, Phase.generate, Phase.shrink)


def test_random_programs_on_packed_batches_do_what_the_model_does(packed: type[Programs]) -> None:
    _run(packed, 150, 50, Phase.generate)


@pytest.mark.torture
def test_many_long_random_programs_on_packed_batches_do_what_the_model_does(packed: type[Programs]) -> None:
    _run(packed, 600, 60, Phase.generate, Phase.shrink)


def _programs(engine: str) -> type[Programs]:
    return type("Programs", (Programs,), {"engine": engine})


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> type[Programs]:
    """Programs in which most messages are plain, on SQLite, which packs as few as two of them, and at most three."""
    monkeypatch.setattr(sqlite_runs, "SHORTEST", 1)
    monkeypatch.setattr(sqlite_runs, "LONGEST", 3)
    messages = st.one_of(plain_messages, plain_messages, new_messages)
    return type("Programs", (Programs,), {"engine": "sqlite", "messages": messages})
