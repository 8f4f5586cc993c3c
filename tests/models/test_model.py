"""Test random programs on a store and a reference queue: after every step both look the same."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from storage.errors import MessageLeased, MessageNotFound, QueueNotFound, StaleReceipt
from storage.model import Message, NewMessage, Receive, State
from storage.sqlite import column_batches as sqlite_column_batches
from storage.validation import KEY_LOCKS
from tests.models.model_queue import SCRATCH, Handle, Item, ModelQueue
from tests.support.engines import ENGINES, PACE, FakeClock

# Most messages are plain and most reads unaddressed, so that unusual ones meet usual ones.
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
    *["send"] * 3, *["receive"] * 5, *["settle"] * 6, *["settle_many"] * 2, *["advance"] * 3, *["by_id"] * 2,
    "configure", "redrive", "redrive", "purge",
]  # fmt: skip
SETTLING = ["ack", "extend", "extend", "release", "release", "reject"]
QUEUES = ["q", "q.dead", "q.dead.dead"]

Draw = Callable[..., Any]


class Programs(RuleBasedStateMachine):
    """Runs the steps of a program on the store and on the model."""

    engine: str
    key_lock = "run"
    messages = new_messages

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="queue-model-", dir=SCRATCH)
        self.clock = FakeClock()
        self.store = ENGINES[self.engine](Path(self.directory.name), self.clock)
        self.model = ModelQueue(self.clock.now(), key_lock=self.key_lock)
        self.ids: dict[Item, int] = {}
        self.held: list[tuple[str, Handle]] = []
        self.sent = 0
        self.looked_at = 0  # the number of the last compared item
        self.store.configure("q", {"key_lock": self.key_lock})

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    @rule(data=st.data(), verb=st.sampled_from(VERBS))
    def step(self, data: st.DataObject, verb: str) -> None:
        # One rule for all: Hypothesis would omit half of several from each program, which reaches few states.
        getattr(self, verb)(data.draw)

    def send(self, draw: Draw) -> None:
        messages = []
        for fields in draw(st.lists(self.messages, min_size=1, max_size=5), "batch"):
            self.sent += 1
            messages.append(NewMessage.from_document({"text": f"m{self.sent}", **fields}))
        sent = self.store.send("q", messages)
        expected = [self.model.send(message) for message in messages]
        assert sent.duplicates == [place for place, (_, is_duplicate) in enumerate(expected) if is_duplicate]
        for (item, _), number in zip(expected, sent.ids, strict=True):
            assert self.ids.setdefault(item, number) == number

    def receive(self, draw: Draw) -> None:
        queue = draw(st.sampled_from(["q"] * 7 + ["q.dead"]), "queue")
        if queue == "q":  # in other queues nothing arrives before a peek at this one
            self._advance(draw(st.sampled_from([0, 0, 5]), "later"))  # and the store must notice the effects itself
        limit, recipient = draw(limits, "limit"), draw(st.sampled_from([""] * 5 + ["ann", None]), "recipient")
        lease = draw(st.sampled_from([2, 5, 5, 8, None]), "lease")
        got = self.store.receive(Receive((queue,), limit, lease, recipient))
        handles = self.model.receive(queue, limit, lease and lease * 1000, recipient)
        assert [(message.text, message.receive_count, _deaths(message)) for message in got] == [
            (handle.item.message.text, handle.item.receives, handle.item.deaths) for handle in handles
        ]
        if lease is not None:
            self.held += [(str(message.receipt), handle) for message, handle in zip(got, handles, strict=True)]

    def settle(self, draw: Draw) -> None:
        if not self.held:
            return
        there = [held for held in self.held if held[1].item in self.model.items]
        receipt, handle = draw(st.sampled_from((self.held[-2:] + there[-9:])[::-1]), "held")
        verb, lease, delay = draw(st.sampled_from(SETTLING), "verb"), draw(durations, "s"), draw(delays, "delay")
        counted = draw(st.booleans(), "counted")
        store_verbs: dict[str, Callable[[], object]] = {
            "ack": lambda: self.store.settle(receipt),
            "extend": lambda: self.store.extend(receipt, lease),
            "release": lambda: self.store.release(receipt, delay, counted=counted),
            "reject": lambda: self.store.reject(receipt),
        }
        model_verbs: dict[str, Callable[[], None]] = {
            "ack": lambda: self.model.ack([handle.item]),
            "extend": lambda: self.model.extend([handle.item], lease * 1000),
            "release": lambda: self.model.release(handle.item, delay * 1000, counted),
            "reject": lambda: self.model.die([handle.item], "rejected"),
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
        verb = draw(st.sampled_from(["ack", "extend", "transact"]), "verb")
        if verb == "extend":
            self._extend_many(draw(st.permutations(chosen), "order"))
            return
        receipts = [receipt for receipt, _ in chosen]
        outcomes = [self.model.find(handle) for _, handle in chosen]
        if verb == "ack":
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
        self.model.ack(
            [handle.item for (_, handle), outcome in zip(chosen, outcomes, strict=True) if outcome == "holds"]
        )

    def _extend_many(self, chosen: list[tuple[str, Handle]]) -> None:
        """Extend leases. The store decides which of several ended leases of a key is valid again."""
        result = self.store.extend_many([receipt for receipt, _ in chosen], 5)
        for receipt, handle in chosen:
            outcome = "stale" if receipt in result.stale else "missing" if receipt in result.missing else "holds"
            if outcome == "holds":
                assert self.model.find(handle) == "holds"
                assert not handle.item.released
            elif self.model.find(handle, to_extend=True) == "holds":
                others = [other for _, other in chosen if other.item.message.key == handle.item.message.key]
                assert outcome == "stale"
                assert len({other.delivery for other in others}) > 1
        refused = {*result.stale, *result.missing}
        extended = [handle.item for receipt, handle in chosen if receipt not in refused]
        assert (result.extended, result.leased_until) == (len(extended), self.model.now + 5_000)
        self.model.extend(extended, 5_000)

    def by_id(self, draw: Draw) -> None:
        items = [item for item in self.model.items if item in self.ids]
        if not items:
            return
        item, delay = draw(st.sampled_from(items), "item"), draw(delays, "delay")
        queue, number = item.queue, self.ids[item]
        store_verbs: dict[str, Callable[[], object]] = {
            "delete": lambda: self.store.delete_message(queue, number),
            "die": lambda: self.store.dead_letter(queue, number, "by hand"),
            "reschedule": lambda: self.store.reschedule(queue, number, delay),
        }
        model_verbs: dict[str, Callable[[], None]] = {
            "delete": lambda: self.model.delete(item),
            "die": lambda: self.model.die([item], "by hand"),
            "reschedule": lambda: self.model.reschedule(item, delay * 1000),
        }
        verb = draw(st.sampled_from(["delete", "die", "reschedule", "reschedule"]), "verb")
        if verb == "die" and queue == QUEUES[-1]:
            return
        if item.leased_until is None:
            store_verbs[verb]()
            model_verbs[verb]()
        else:
            with pytest.raises(MessageLeased):
                store_verbs[verb]()

    def advance(self, draw: Draw) -> None:
        self._advance(draw(st.sampled_from([1, 2, 3, 3, 5, 5, 400]), "s"))

    def _advance(self, duration: int) -> None:
        self.clock.advance(duration)
        self.model.advance(duration * 1000)

    def configure(self, draw: Draw) -> None:
        retention, delay = draw(st.sampled_from([None, None, None, 6, 12]), "retention"), draw(delays, "delay")
        self.model.max_receives, self.model.dead_letter_expired = draw(st.integers(0, 3)), draw(st.booleans())
        self.model.retention, self.model.delay = retention and retention * 1000, delay * 1000
        self.store.configure(
            "q",
            {
                "max_receives": self.model.max_receives,
                "dead_letter_expired": self.model.dead_letter_expired,
                "retention": retention,
                "delay": delay,
            },
        )
        self.model.settle_down()

    def redrive(self, draw: Draw) -> None:
        queue = draw(st.sampled_from(["q", "q", *QUEUES]), "queue")
        how = draw(st.sampled_from(["all", "limit", "ids", "reason"]), "how")
        if not self._exists(queue):
            return
        if how == "all":
            assert self.store.redrive(queue) == self.model.redrive(queue, list)
        elif how == "limit":
            limit = draw(limits, "limit")
            assert self.store.redrive(queue, limit) == self.model.redrive(queue, lambda dead: dead[:limit])
        elif how == "ids":
            some = [item for item in self.model.items if item in self.ids][-draw(limits, "some") :]
            ids = [self.ids[item] for item in some]
            moved = self.store.redrive(queue, ids=ids)
            assert moved == self.model.redrive(queue, lambda dead: [item for item in dead if item in some])
        else:
            reason = draw(st.sampled_from(["max_receives", "rejected", "expired", "by hand"]), "reason")
            moved = self.store.redrive(queue, reason=reason)
            assert moved == self.model.redrive(queue, lambda dead: [i for i in dead if i.deaths[-1][1] == reason])

    def purge(self, draw: Draw) -> None:
        queue = draw(st.sampled_from(["q", "q", "q.dead"]), "queue")
        if self._exists(queue):
            assert self.store.purge(queue) == self.model.purge(queue)
            self.model.settle_down()

    def _exists(self, queue: str) -> bool:
        return queue in [known.name for known in self.store.queues()]

    @invariant()
    def the_store_looks_like_the_model(self) -> None:
        for queue in QUEUES:  # in this order: a peek at a queue moves its dead letters
            self._compare(queue)
        self.looked_at = max([self.looked_at, *(item.number for item in self.model.items)])
        stats = self.store.queue("q").stats
        assert {name: getattr(stats, name) for name in ("sent", "received", "acked", "expired", "dead_lettered")} == {
            name: self.model.totals[name] for name in ("sent", "received", "acked", "expired", "dead_lettered")
        }

    def _compare(self, name: str) -> None:
        rows = self.store.peek(name, limit=1_000)
        self._learn(name, rows)
        items = self.model.of(name)
        states = [self.model.state(item) for item in items]
        assert [(row.text, row.state, row.receive_count, _deaths(row)) for row in rows] == [
            (item.message.text, state, item.receives, item.deaths) for item, state in zip(items, states, strict=True)
        ]
        try:
            stats = self.store.queue(name).stats
        except QueueNotFound:
            assert rows == []
            return
        counts = Counter(states)
        assert (stats.ready, stats.leased, stats.delayed, stats.blocked) == (
            counts[State.READY], counts[State.LEASED], counts[State.DELAYED], counts[State.BLOCKED]
        )  # fmt: skip
        assert stats.bytes == sum(item.message.size for item in items)
        assert stats.dead == len(self.model.dead_from(name))
        least, most = self.model.oldest_age(name)
        assert least <= round(stats.oldest_age * 1000) <= most

    def _learn(self, name: str, rows: Sequence[Message]) -> None:
        """Copy ids, and the undefined order of new dead letters, from the store."""
        ids = {row.text: row.id for row in rows}
        for item in self.model.of(name):
            if item.message.text in ids:
                self.ids.setdefault(item, ids[item.message.text])
        if name != "q":
            died = [item for item in self.model.of(name) if item.number > self.looked_at and item in self.ids]
            numbers = sorted(item.number for item in died)
            for item, number in zip(sorted(died, key=lambda item: self.ids[item]), numbers, strict=True):
                item.number = number
            self.model.items.sort(key=lambda item: item.number)


def _deaths(message: Message) -> list[tuple[str, str]]:
    """Return the queue and the reason of each dead-lettering of a message."""
    attributes = json.loads(message.fields or "{}").get("attributes", {})
    deaths = json.loads(attributes.get("dead_letter_history", "[]"))
    if "dead_letter_from" in attributes:
        deaths.append(attributes)
    return [(death["dead_letter_from"], death["dead_letter_reason"]) for death in deaths]


def _run(machine: type[Programs], programs: int, steps: int, *phases: Phase) -> None:
    """Run the same programs each time, so that a failure is reproducible."""
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
def test_random_programs_match_the_model(engine: str) -> None:
    _run(
        _programs(engine), 150 // PACE[engine], 50, Phase.generate
    )  # shrinking takes minutes, so only the slow test does it


@pytest.mark.parametrize("engine", ENGINES)
def test_random_programs_with_head_locks_match_the_model(engine: str) -> None:
    _run(_programs(engine, "head"), 100 // PACE[engine], 50, Phase.generate)


@pytest.mark.torture
@pytest.mark.parametrize("key_lock", KEY_LOCKS)
@pytest.mark.parametrize("engine", ENGINES)
def test_many_long_random_programs_match_the_model(engine: str, key_lock: str) -> None:
    _run(_programs(engine, key_lock), 300 // PACE[engine], 60, Phase.generate, Phase.shrink)


def test_random_programs_on_packed_batches_match_the_model(packed: type[Programs]) -> None:
    _run(packed, 150, 50, Phase.generate)


@pytest.mark.torture
def test_many_long_random_programs_on_packed_batches_match_the_model(packed: type[Programs]) -> None:
    _run(packed, 300, 60, Phase.generate, Phase.shrink)


def _programs(engine: str, key_lock: str = "run") -> type[Programs]:
    return type("Programs", (Programs,), {"engine": engine, "key_lock": key_lock})


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> type[Programs]:
    """Yield programs of mostly plain messages on SQLite, which packs from two to three of them."""
    monkeypatch.setattr(sqlite_column_batches, "SHORTEST", 1)
    monkeypatch.setattr(sqlite_column_batches, "LONGEST", 3)
    messages = st.one_of(plain_messages, plain_messages, new_messages)
    return type("Programs", (Programs,), {"engine": "sqlite", "messages": messages})
