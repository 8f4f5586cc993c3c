"""A queue and its dead letters in plain Python, by the rules of the API: what random programs are checked against."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from storage.model import NewMessage, State

DEDUP_WINDOW = 300_000  # ms, as all durations here

# In memory where there is such a place: this is about the order of things, not about the disk.
SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclass(eq=False)
class Item:
    number: int  # its place in the order of arrival
    message: NewMessage
    sent_at: int
    due: int = 0  # not delivered before
    expires: int | None = None
    leased_until: int | None = None
    delivery: int = 0  # the number of its last delivery
    receives: int = 0


class Handle(NamedTuple):
    """A receipt."""

    item: Item
    delivery: int


@dataclass
class ModelQueue:
    now: int
    max_receives: int = 0
    dead_letter_expired: bool = False
    items: list[Item] = field(default_factory=list)  # by age
    dead: list[Item] = field(default_factory=list)  # by time of death
    totals: Counter[str] = field(default_factory=Counter)
    known: dict[str, tuple[Item, int]] = field(default_factory=dict)  # by dedup_id, and until when
    _number: int = 0

    def send(self, message: NewMessage) -> Item:
        first, until = self.known.get(message.dedup_id or "", (None, 0))
        if first is not None and self.now < until:
            return first
        self.totals["sent"] += 1
        item = self._arrive(self.items, message, self.now, message.ttl)
        item.due = self.now + message.delay
        if message.dedup_id is not None:
            self.known[message.dedup_id] = (item, self.now + DEDUP_WINDOW)
        return item

    def receive(self, limit: int, lease: int | None, recipient: str) -> list[Handle]:
        while spent := [i for i in self._ready(recipient)[:limit] if self._is_spent(i)]:
            self._bury(spent)  # max_receives was lowered since they were given back
        taken: list[Item] = []
        while len(taken) < limit and (ready := [i for i in self._ready(recipient, taken) if not self._is_spent(i)]):
            taken.append(ready[0])
        self._number += 1
        self.totals["received"] += len(taken)
        for item in taken:
            item.receives, item.delivery = item.receives + 1, self._number
            item.leased_until = None if lease is None else self.now + lease
        if lease is None:
            self._remove(taken)
        return [Handle(item, item.delivery) for item in taken]

    def _ready(self, recipient: str, taken: list[Item] | None = None) -> list[Item]:
        """In the order of delivery, for a reader that has `taken` some already."""
        left = [item for item in self.items if item not in (taken or [])]
        ready = [i for i in left if i.message.recipient == recipient and self.state(i, left) is State.READY]
        return sorted(ready, key=lambda item: (-item.message.priority, item.number))

    def state(self, item: Item, among: list[Item]) -> State:
        """Of one in the queue, or one that is dead, among all of those."""
        if item.leased_until is not None:
            return State.LEASED
        key = item.message.key
        of_key = [other for other in among if other.message.key == key] if key is not None else [item]
        if of_key[0] is not item or any(other.leased_until is not None for other in of_key):
            return State.BLOCKED
        return State.DELAYED if item.due > self.now else State.READY

    def find(self, handle: Handle, *, to_extend: bool = False) -> str:
        """Whether a receipt holds, is stale, or its message is missing."""
        item, delivery = handle
        if item not in self.items:
            return "missing"
        others = [i for i in self.items if i.leased_until is not None and i.delivery != delivery]
        if to_extend and item.message.key is not None and item.message.key in [i.message.key for i in others]:
            return "stale"  # a lease that ended cannot hold again: the key is somebody else's now
        return "holds" if item.delivery == delivery else "stale"

    def ack(self, item: Item) -> None:
        self._remove([item])
        self.totals["acked"] += 1

    def extend(self, item: Item, lease: int) -> None:
        item.leased_until = self.now + lease

    def release(self, item: Item, delay: int) -> None:
        item.leased_until, item.due = None, self.now + delay
        self._bury([item] if self._is_spent(item) else [])
        self.advance(0)

    def reject(self, item: Item) -> None:
        self._bury([item])

    def advance(self, duration: int) -> None:
        self.now += duration
        ended = [i for i in self.items if i.leased_until is not None and i.leased_until <= self.now]
        for item in ended:
            item.leased_until = None
        self._bury([item for item in ended if self._is_spent(item)])
        expired = [i for i in self.items if not i.leased_until and i.expires is not None and i.expires <= self.now]
        self.totals["expired"] += len(expired)
        (self._bury if self.dead_letter_expired else self._remove)(expired)

    def purge(self) -> int:
        purged, self.items = len(self.items), []
        return purged

    def redrive(self, limit: int) -> int:
        moved, self.dead = self.dead[:limit], self.dead[limit:]
        for old in moved:
            self._arrive(self.items, old.message, old.sent_at, old.message.ttl)
        return len(moved)

    def _is_spent(self, item: Item) -> bool:
        return 0 < self.max_receives <= item.receives

    def _bury(self, items: list[Item]) -> None:
        self._remove(items)
        self.totals["dead_lettered"] += len(items)
        for old in sorted(items, key=lambda item: item.number):
            self._arrive(self.dead, old.message, old.sent_at, None)

    def _remove(self, items: list[Item]) -> None:
        self.items = [item for item in self.items if item not in items]

    def _arrive(self, where: list[Item], message: NewMessage, sent_at: int, ttl: int | None) -> Item:
        self._number += 1
        where.append(Item(self._number, message, sent_at, expires=None if ttl is None else self.now + ttl))
        return where[-1]
