"""A queue and its dead letters in plain Python, by the rules of the API; tests compare random programs with it.

The dead letters of a queue "q" are in "q.dead", and those of that queue in "q.dead.dead". All settings are of "q".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from storage.model import NewMessage, State

QUEUE = "q"
DEDUP_WINDOW = 300_000  # ms, as all durations here

# In memory if possible: these tests are about order, not about the disk.
SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclass(eq=False)
class Item:
    number: int  # its place in the order of arrival
    queue: str
    message: NewMessage
    sent_at: int
    arrived_at: int
    due: int = 0  # time of the first delivery
    ready_since: tuple[int, int] | None = None  # at the earliest and at the latest; None if not ready
    leased_until: int | None = None
    delivery: int = 0  # the number of its last delivery
    released: bool = False  # since that delivery
    receives: int = 0
    deaths: list[tuple[str, str]] = field(default_factory=list)  # the queue and the reason of each


class Handle(NamedTuple):
    """A receipt."""

    item: Item
    delivery: int


@dataclass
class ModelQueue:
    now: int
    max_receives: int = 0
    retention: int | None = None
    delay: int = 0
    dead_letter_expired: bool = False
    key_lock: str = "run"
    items: list[Item] = field(default_factory=list)  # messages of all queues, by age
    totals: Counter[str] = field(default_factory=Counter)  # of "q"
    known: dict[str, tuple[Item, int]] = field(default_factory=dict)  # by dedup_id; with the time of expiry
    _number: int = 0

    # -- looks

    def of(self, queue: str) -> list[Item]:
        return [item for item in self.items if item.queue == queue]

    def dead_from(self, queue: str) -> list[Item]:
        return [item for item in self.items if item.deaths and item.deaths[-1][0] == queue]

    def state(self, item: Item) -> State:
        if item.leased_until is not None:
            return State.LEASED
        if self._of_key(item)[0] is not item or self._is_locked(item):
            return State.BLOCKED
        return State.DELAYED if item.due > self.now else State.READY

    def oldest_age(self, queue: str) -> tuple[int, int]:
        """Return ms at the least and at the most."""
        since = [item.ready_since for item in self.of(queue) if item.ready_since is not None]
        if not since:
            return 0, 0
        return self.now - min(latest for _, latest in since), self.now - min(earliest for earliest, _ in since)

    def find(self, handle: Handle, *, to_extend: bool = False) -> str:
        """Return whether a receipt is valid, stale, or its message is missing."""
        item, delivery = handle
        if item not in self.items:
            return "missing"
        if item.delivery != delivery or (to_extend and item.released):
            return "stale"
        others = [other for other in self._of_key(item) if other.leased_until is not None]
        if to_extend and self._locks_keys(item) and any(other.delivery != delivery for other in others):
            return "stale"  # an ended lease cannot be extended: another reader has the key now
        return "holds"

    # -- verbs

    def send(self, message: NewMessage) -> tuple[Item, bool]:
        """Return the message, and whether it is a duplicate of this earlier one."""
        first, until = self.known.get(message.dedup_id or "", (None, 0))
        if first is not None and self.now < until:
            return first, True
        self.totals["sent"] += 1
        item = self._arrive(QUEUE, message, self.now)
        item.due = self.now + (self.delay if message.delay is None else message.delay)
        if message.dedup_id is not None:
            self.known[message.dedup_id] = (item, self.now + DEDUP_WINDOW)
        self.settle_down()
        return item, False

    def receive(self, queue: str, limit: int, lease: int | None, recipient: str | None) -> list[Handle]:
        self.settle_down()
        taken: list[Item] = []
        while len(taken) < limit and (ready := self._deliverable(queue, recipient, taken)):
            taken.append(ready[0])
        self._number += 1
        if queue == QUEUE:
            self.totals["received"] += len(taken)
        for item in taken:
            item.receives, item.delivery, item.released = item.receives + 1, self._number, False
            item.leased_until = None if lease is None else self.now + lease
        if lease is None:
            self._remove(taken)
        self.settle_down()
        return [Handle(item, item.delivery) for item in taken]

    def ack(self, items: Sequence[Item]) -> None:
        self._remove(items)
        self.totals["acked"] += sum(item.queue == QUEUE for item in items)
        self.settle_down()

    def extend(self, items: Sequence[Item], lease: int) -> None:
        for item in items:
            item.leased_until = self.now + lease
        self.settle_down()

    def release(self, item: Item, delay: int, counted: bool) -> None:
        if counted and self._is_spent(item):
            self.die([item], "max_receives")
            return
        if not counted and not item.released:
            item.receives -= 1
        item.leased_until, item.due, item.released = None, self.now + delay, True
        item.ready_since = None
        self.settle_down()

    def reschedule(self, item: Item, delay: int) -> None:
        if delay or self.state(item) is not State.READY:
            item.due, item.ready_since, item.released = (
                self.now + delay,
                None,
                True,
            )  # its ended lease cannot be extended
        self.settle_down()

    def delete(self, item: Item) -> None:
        self._remove([item])
        self.settle_down()

    def purge(self, queue: str) -> int:
        purged = self.of(queue)
        self._remove(purged)
        self.known = {name: (item, until) for name, (item, until) in self.known.items() if item not in purged}
        return len(purged)

    def redrive(self, queue: str, chosen: Callable[[list[Item]], list[Item]]) -> int:
        """Move `chosen` dead letters of this queue back by one dead-lettering; return their number."""
        dead = [i for i in self.items if i.deaths and queue in (i.queue, i.deaths[-1][0]) and i.leased_until is None]
        moved = chosen(dead)
        self._remove(moved)
        for old in moved:
            back = self._arrive(old.deaths[-1][0], old.message, old.sent_at)
            back.deaths = old.deaths[:-1]
            for name, (item, until) in self.known.items():
                if back.queue == QUEUE and item.message is old.message:
                    self.known[name] = (back, until)
        self.settle_down()
        return len(moved)

    def die(self, items: Sequence[Item], reason: str) -> None:
        self._remove(items)
        self.totals["dead_lettered"] += sum(item.queue == QUEUE for item in items)
        for old in sorted(items, key=lambda item: item.number):
            dead = self._arrive(f"{old.queue}.dead", old.message, old.sent_at)
            dead.deaths = [*old.deaths, (old.queue, reason)]
        self.settle_down()

    def advance(self, duration: int) -> None:
        self.now += duration
        ended = [i for i in self.items if i.leased_until is not None and i.leased_until <= self.now]
        for item in ended:
            item.due, item.leased_until = item.leased_until or 0, None
        if spent := [item for item in ended if self._is_spent(item)]:
            self.die(spent, "max_receives")
        self.settle_down()

    def settle_down(self) -> None:
        """Apply everything that is due, as a peek at the queue shows it."""
        while True:
            if expired := [item for item in self.items if item.leased_until is None and self._is_expired(item)]:
                self.totals["expired"] += len(expired)
                if self.dead_letter_expired:
                    self.die(expired, "expired")
                else:
                    self._remove(expired)
            elif spent := [i for i in self.items if self._is_spent(i) and self.state(i) is State.READY]:
                self.die(spent, "max_receives")
            else:
                break
        for item in self.items:
            if self.state(item) is not State.READY:
                item.ready_since = None
            elif item.ready_since is None:
                since = max(item.due, item.arrived_at)
                item.ready_since = (since, since if item.message.key is None else self.now)  # blocked before?

    # -- private

    def _deliverable(self, queue: str, recipient: str | None, taken: Sequence[Item]) -> list[Item]:
        """Return messages in order of delivery, for a reader that has `taken` some already."""

        def is_next(item: Item) -> bool:
            before = [other for other in self._of_key(item) if other.number < item.number]
            return all(other in taken for other in before)

        ready = [
            item
            for item in self.of(queue)
            if item not in taken
            and recipient in (None, item.message.recipient)
            and item.due <= self.now
            and not self._is_spent(item)
            and is_next(item)
            and item.leased_until is None
            and not self._is_locked(item)
        ]
        last = taken[-1].message.key if taken and not self._locks_keys(taken[-1]) else None

        def order(item: Item) -> tuple[bool, int, int]:
            return last is None or item.message.key != last, -item.message.priority, item.number

        return sorted(ready, key=order)

    def _of_key(self, item: Item) -> list[Item]:
        key = item.message.key
        return [item] if key is None else [other for other in self.of(item.queue) if other.message.key == key]

    def _locks_keys(self, item: Item) -> bool:
        return item.queue != QUEUE or self.key_lock == "run"

    def _is_locked(self, item: Item) -> bool:
        """Return whether a lease of its key, of whichever message, keeps it back."""
        return self._locks_keys(item) and any(other.leased_until is not None for other in self._of_key(item))

    def _is_spent(self, item: Item) -> bool:
        return item.queue == QUEUE and 0 < self.max_receives <= item.receives

    def _is_expired(self, item: Item) -> bool:
        age = self.now - item.arrived_at
        past = item.queue == QUEUE and self.retention is not None and age >= self.retention
        return past or (not item.deaths and item.message.ttl is not None and age >= item.message.ttl)

    def _remove(self, items: Sequence[Item]) -> None:
        self.items = [item for item in self.items if item not in items]

    def _arrive(self, queue: str, message: NewMessage, sent_at: int) -> Item:
        self._number += 1
        self.items.append(Item(self._number, queue, message, sent_at, self.now))
        return self.items[-1]
