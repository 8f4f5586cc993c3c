"""Two parties on the same queues, and the check of the answers to both.

An Action is one call of one party, drawn before it is run. A World runs actions against stores of the same data and
records which messages were sent, delivered, settled or removed. The order between two parties is undefined, so the
check covers only what is true in every order: nothing is lost or duplicated, keys keep their order, leases exclude
each other, receipts work as specified, and counts equal a recount. A purge or redrive that answered has processed all
messages that existed when it began.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, Protocol

from storage.errors import MessageLeased, MessageNotFound, QueueNotFound, StaleReceipt
from storage.model import STATES, Message, NewMessage, Receive, State
from storage.store import Engine
from tests.support.engines import FakeClock

LIVE = ("a", "b")
DEAD = "d"  # the dead-letter queue of both
LEASE = 10.0  # seconds
BY_ID = ("delete_message", "dead_letter", "reschedule")


class Action(NamedTuple):
    verb: str
    arguments: tuple[Any, ...] = ()


class Row(NamedTuple):
    """A message in the database."""

    queue: str
    id: int
    text: str
    state: str
    origin: str | None  # of a dead letter


class Look(Protocol):
    """Read all messages without a lock that a party may have."""

    def __call__(self) -> list[Row]: ...


@dataclass(eq=False)
class Delivery:
    queue: str
    id: int
    text: str
    receipt: str | None
    until: int  # when its lease ends
    together: frozenset[int]  # the ids that the same read returned
    step: int
    released: bool = False  # or moved to the dead letters: its lease has ended


@dataclass
class World:
    clock: FakeClock
    look: Look
    key_of: dict[str, str | None] = field(default_factory=dict)
    deliveries: dict[str, list[Delivery]] = field(default_factory=dict)  # by text, in order
    by_receipt: dict[str, Delivery] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)  # by text: how it was settled
    wiped: set[str] = field(default_factory=set)  # by purges and deletions of queues
    there: set[str] = field(default_factory=set)
    step: int = 0
    # Of the current step:
    log: list[tuple[str, Action, object]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)
    purged: int = 0
    has_deleted: bool = False
    refused: list[tuple[str, Delivery, Exception]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=lambda: count(1))

    # -- the calls

    def run(self, party: str, action: Action, store: Engine) -> None:
        """Make the call and keep account of its answer."""
        try:
            answer = getattr(self, f"_{action.verb}")(store, *action.arguments)
        except QueueNotFound as fault:
            answer = fault  # deleted
        except Exception as fault:
            self.faults.append(f"{party}'s {action} raised {fault!r}")
            answer = fault
        self.log.append((party, action, answer))

    def _send(self, store: Engine, queue: str, documents: Sequence[dict[str, Any]]) -> object:
        for document in documents:
            self.key_of[document["text"]] = document.get("key")
        self.sent |= {document["text"] for document in documents}
        return store.send(queue, [NewMessage.from_document(document) for document in documents])

    def _receive(self, store: Engine, queues: tuple[str, ...], limit: int, lease: float | None) -> object:
        return self._received(list(store.receive(Receive(queues, limit, lease))), lease)

    def _received(self, messages: Sequence[Message], lease: float | None) -> object:
        until = self.clock.now() + round((lease or 0) * 1000)
        together = frozenset(message.id for message in messages)
        for message in messages:
            delivery = Delivery(message.queue, message.id, message.text, message.receipt, until, together, self.step)
            self.deliveries.setdefault(message.text, []).append(delivery)
            if message.receipt is None:
                self._settled(message.text, "read")
            else:
                self.by_receipt[message.receipt] = delivery
        return [(message.queue, message.id, message.text) for message in messages]

    def _settled(self, text: str, how: str) -> None:
        if text in self.gone:
            self.faults.append(f"{text} was {how}, having been {self.gone[text]}")
        self.gone[text] = how

    def _ack(self, store: Engine, receipt: str) -> object:
        return self._by_receipt("ack", receipt, lambda: store.settle(receipt))

    def _ack_many(self, store: Engine, receipts: Sequence[str]) -> object:
        result = store.ack(receipts)
        for receipt in set(receipts) - set(result.stale) - set(result.missing):
            self._settled(self.by_receipt[receipt].text, "acked")
        for faults, kind in ((result.stale, StaleReceipt()), (result.missing, MessageNotFound())):
            self.refused += [("ack", self.by_receipt[receipt], kind) for receipt in faults]
        return result

    def _transact(
        self, store: Engine, receipts: Sequence[str], queue: str, documents: Sequence[dict[str, Any]], limit: int
    ) -> object:
        for document in documents:
            self.key_of[document["text"]] = document.get("key")
        messages = [(queue, NewMessage.from_document(document)) for document in documents]
        try:
            result = store.transact(receipts, messages, Receive((queue,), limit, LEASE))
        except StaleReceipt as fault:
            return fault
        self.sent |= {document["text"] for document in documents}
        for receipt in receipts:
            self._settled(self.by_receipt[receipt].text, "acked")
        return self._received(list(result.messages), LEASE)

    def _extend(self, store: Engine, receipt: str) -> object:
        return self._by_receipt("extend", receipt, lambda: store.extend(receipt, LEASE))

    def _extend_many(self, store: Engine, receipts: Sequence[str]) -> object:
        result = store.extend_many(receipts, LEASE)
        for receipt in set(receipts) - set(result.stale) - set(result.missing):
            self.by_receipt[receipt].until = result.leased_until
        for faults, kind in ((result.stale, StaleReceipt()), (result.missing, MessageNotFound())):
            self.refused += [("extend", self.by_receipt[receipt], kind) for receipt in faults]
        return result

    def _release(self, store: Engine, receipt: str, delay: float, counted: bool) -> object:
        return self._by_receipt("release", receipt, lambda: store.release(receipt, delay, counted=counted))

    def _reject(self, store: Engine, receipt: str) -> object:
        return self._by_receipt("reject", receipt, lambda: store.reject(receipt))

    def _by_receipt(self, verb: str, receipt: str, call: Callable[[], object]) -> object:
        delivery = self.by_receipt[receipt]
        was_released = delivery.released
        try:
            call()
        except (StaleReceipt, MessageNotFound) as fault:
            self.refused.append((verb, delivery, fault))
            return fault
        later = [d for d in self.deliveries[delivery.text] if d.step < self.step and d is not delivery][-1:]
        if later and later[0].step > delivery.step:
            self.faults.append(f"{verb} of {delivery.text} held, though it was delivered again since")
        if verb == "ack":
            self._settled(delivery.text, "acked")
        elif verb == "extend":
            if was_released:
                self.faults.append(f"extend of {delivery.text} took back what was released")
            delivery.until = self.clock.now() + round(LEASE * 1000)
        else:
            delivery.released = True
        return "held"

    def _purge(self, store: Engine, queue: str) -> object:
        began = {row.id for row in self.look() if row.queue == queue}
        purged = store.purge(queue)
        self.purged += purged
        if left := began & {row.id for row in self.look() if row.queue == queue}:
            self.faults.append(f"a purge of {queue} answered {purged} and left {sorted(left)}")
        return purged

    def _redrive(self, store: Engine, queue: str, limit: int | None) -> object:
        def dead() -> set[tuple[str, int]]:
            rows = [row for row in self.look() if row.origin is not None and queue in (row.queue, row.origin)]
            return {(row.queue, row.id) for row in rows if row.state != "leased"}

        began = dead()
        moved = store.redrive(queue, limit)
        touched = {(d.queue, d.id) for all_ in list(self.deliveries.values()) for d in all_ if d.step == self.step}
        left = (began & dead()) - touched
        if left and (limit is None or moved < min(limit, len(began - touched))):
            self.faults.append(f"a redrive of {queue} (limit {limit}) answered {moved} and left {sorted(left)}")
        return moved

    def _configure(self, store: Engine, queue: str, changes: dict[str, Any]) -> object:
        return store.configure(queue, changes).settings

    def _delete_queue(self, store: Engine, queue: str) -> object:
        self.has_deleted = True
        try:
            store.delete_queue(queue)
        finally:
            store.configure(queue, {"dead_letter_queue": DEAD})
        return "done"

    def _delete_message(self, store: Engine, queue: str, text: str) -> object:
        if (done := self._by_id(queue, text, lambda id: store.delete_message(queue, id))) == "done":
            self._settled(text, "deleted")
        return done

    def _dead_letter(self, store: Engine, queue: str, text: str) -> object:
        return self._by_id(queue, text, lambda id: store.dead_letter(queue, id))

    def _reschedule(self, store: Engine, queue: str, text: str, delay: float) -> object:
        return self._by_id(queue, text, lambda id: store.reschedule(queue, id, delay))

    def _by_id(self, queue: str, text: str, call: Callable[[int], None]) -> object:
        ids = [row.id for row in self.look() if (row.queue, row.text) == (queue, text)]
        try:
            for id in ids:
                call(id)
        except (MessageLeased, MessageNotFound) as fault:
            return fault
        return "done" if ids else "not there"

    # -- the judge

    def judge(self, store: Engine) -> None:
        """Check the records of a step after all its calls. Raise AssertionError with the violations."""
        peeked = {queue.name: store.peek(queue.name, limit=1_000) for queue in store.queues()}
        rows = {queue: {message.id: message.text for message in messages} for queue, messages in peeked.items()}
        there = Counter(text for of_queue in rows.values() for text in of_queue.values())
        self._judge_presence(there)
        self._judge_deliveries(rows)
        self._judge_refusals(rows)
        self._judge_counts(store, peeked)
        assert not self.faults, "\n".join([*self.faults, "the step was", *map(str, self.log)])
        self.there = set(there)
        self.step += 1
        self.log, self.sent, self.refused = [], set(), []
        self.purged, self.has_deleted = 0, False

    def _judge_presence(self, there: Counter[str]) -> None:
        self.faults += [f"{text} is there {times} times" for text, times in there.items() if times > 1]
        self.faults += [f"{text} is there, having been {self.gone[text]}" for text in there if text in self.gone]
        self.faults += [f"{text} is there, having been wiped out" for text in there.keys() & self.wiped]
        missing = (self.there | self.sent) - there.keys() - self.gone.keys()
        if len(missing) != self.purged and not (self.has_deleted and len(missing) > self.purged):
            self.faults.append(f"{self.purged} messages were purged, and {len(missing)} are missing: {sorted(missing)}")
        self.wiped |= missing

    def _judge_deliveries(self, rows: dict[str, dict[int, str]]) -> None:
        for text, deliveries in self.deliveries.items():
            for before, now in zip([None, *deliveries], deliveries, strict=False):
                if now.step != self.step:
                    continue
                if before is not None and before.until > self.clock.now() and not before.released:
                    self.faults.append(f"{text} was delivered again while it was leased")
                key = self.key_of[text]
                for id, other in rows.get(now.queue, {}).items():
                    if key and self.key_of[other] == key and id < now.id and id not in now.together:
                        self.faults.append(f"{text} (id {now.id}) of key {key} was delivered before {other} (id {id})")

    def _judge_refusals(self, rows: dict[str, dict[int, str]]) -> None:
        for verb, delivery, fault in self.refused:
            if isinstance(fault, MessageNotFound):
                if delivery.id in rows.get(delivery.queue, {}):
                    self.faults.append(f"{verb} of {delivery.text} found no message, but it is there")
            elif self.deliveries[delivery.text][-1] is delivery and not (
                verb == "extend" and (delivery.released or self.key_of[delivery.text])
            ):
                self.faults.append(f"{verb} of {delivery.text} is stale, but the message was not delivered again")

    def _judge_counts(self, store: Engine, peeked: Mapping[str, Sequence[Message]]) -> None:
        for queue in store.queues():
            states = Counter(str(message.state) for message in peeked.get(queue.name, []))
            counted = {state: getattr(queue.stats, state) for state in STATES}
            if counted != {state: states[state] for state in STATES}:
                self.faults.append(f"{queue.name} counts {counted} and has {dict(states)}")

    def drain(self, store: Engine) -> None:
        """Read all remaining messages. Raise AssertionError if one is not delivered."""
        self.clock.advance(1_000)
        for queue in [queue.name for queue in store.queues()]:
            store.configure(queue, {"max_receives": None})
            while True:
                before = len(self.gone)
                self.run("one", Action("receive", ((queue,), 7, None)), store)
                if len(self.gone) == before:
                    break
            self.judge(store)
        assert not self.there, f"nothing delivers {sorted(self.there)}"


def restock(chance: random.Random, world: World, store: Engine) -> None:
    """Fill both queues with plain and keyed messages, and the dead letters from both."""
    rows = world.look()
    for queue in LIVE:
        there = sum(row.queue == queue for row in rows)
        if chance.random() < 0.25:
            world.run("one", Action("purge", (queue,)), store)
            there = 0
        if there < 10:
            world.run("one", Action("send", (queue, _documents(chance, world, 16))), store)
        if sum(row.origin == queue for row in rows) < 4:
            world.run("one", Action("receive", ((queue,), 5, LEASE)), store)
            for deliveries in list(world.deliveries.values()):
                if (last := deliveries[-1]).step == world.step and last.queue == queue:
                    world.run("one", Action("reject", (str(last.receipt),)), store)
    world.judge(store)


def draw(chance: random.Random, world: World, verbs: Sequence[str], queue: str) -> Action:
    """Draw a call that fits the current messages, mostly on this queue."""
    verb = chance.choice(verbs)
    held = [d for all_ in world.deliveries.values() for d in all_[-2:] if d.receipt and d.text not in world.gone]
    receipts = [str(d.receipt) for d in held if d.queue == queue] or [str(d.receipt) for d in held]
    if verb in ("ack", "ack_many", "extend", "extend_many", "release", "reject", "transact") and not receipts:
        verb = "receive"
    if verb in ("send", "transact", "reject", "configure", *BY_ID) and queue == DEAD:
        verb = "redrive"
    match verb:
        case "send":
            return Action(verb, (queue, _documents(chance, world, chance.choice([1, 2, 4, 12, 30]))))
        case "receive":
            queues = (queue,) if queue == DEAD else chance.choice([(queue,), (queue,), ("a", "b"), ("b", "a")])
            return Action(verb, (queues, chance.choice([1, 2, 3, 7, 14]), chance.choice([LEASE, LEASE, None])))
        case "ack" | "extend":
            return Action(verb, (chance.choice(receipts),))
        case "release":
            return Action(verb, (chance.choice(receipts), chance.choice([0, 0, 5]), chance.random() < 0.5))
        case "reject":
            alive = [str(d.receipt) for d in held if d.queue in LIVE]
            return Action(verb, (chance.choice(alive),)) if alive else Action("redrive", (DEAD, None))
        case "ack_many" | "extend_many":
            return Action(verb, (chance.sample(receipts, min(len(receipts), chance.randint(1, 5))),))
        case "transact":
            some = chance.sample(receipts, min(len(receipts), chance.randint(1, 3)))
            documents = _documents(chance, world, chance.choice([1, 2, 4]))
            return Action(verb, (some, queue, documents, chance.choice([1, 2, 7])))
        case "purge" | "delete_queue":
            return Action("purge" if queue == DEAD else verb, (queue,))
        case "redrive":
            return Action(verb, (chance.choice([queue, DEAD]), chance.choice([None, None, None, 2, 5])))
        case "configure":
            return Action(verb, (queue, {"max_receives": chance.choice([0, 1, 2]), "dead_letter_queue": DEAD}))
    of_queue = sorted(row.text for row in world.look() if row.queue == queue)
    if not of_queue:
        return Action("send", (queue, _documents(chance, world, 2)))
    delay = (chance.choice([0, 5]),) if verb == "reschedule" else ()
    return Action(verb, (queue, chance.choice(of_queue), *delay))


def _documents(chance: random.Random, world: World, number: int) -> list[dict[str, Any]]:
    """Return plain messages, messages of one key, or a mix."""
    keys: list[str | None] = chance.choice([[None], ["k"], ["k", "l"], [None, "k", "l"]])
    odd = chance.random() < 0.5
    documents: list[dict[str, Any]] = []
    for _ in range(number):
        document: dict[str, Any] = {"text": f"m{next(world._numbers)}"}
        if key := chance.choice(keys):
            document["key"] = key
        if odd and chance.random() < 0.1:
            document[chance.choice(["priority", "priority", "delay"])] = 5
        documents.append(document)
    return documents


def rows_of(store: Engine) -> list[Row]:
    """Return all messages as peeks show them."""
    return [
        Row(queue, message.id, message.text, str(message.state or State.READY), _origin(message.fields))
        for queue in [queue.name for queue in store.queues()]
        for message in store.peek(queue, limit=1_000)
    ]


def _origin(fields: str | None) -> str | None:
    if fields is None or "dead_letter_from" not in fields:
        return None
    origin: str = json.loads(fields)["attributes"]["dead_letter_from"]
    return origin
