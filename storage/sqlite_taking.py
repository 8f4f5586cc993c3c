"""Giving messages out: which come next, and how they are leased or removed."""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

from storage import sqlite_runs as runs
from storage.kept import told
from storage.model import Message, Receipt
from storage.runs import Run
from storage.sqlite_runs import RunRow
from storage.sqlite_work import QueueRow, Room, Work, int_array


class Candidate(NamedTuple):
    """A message that could be taken now. `followed`: later ones of its key wait behind it."""

    id: int
    priority: int
    key: str | None
    size: int
    receive_count: int
    followed: bool

    @property
    def length(self) -> int:
        return 1


def take(work: Work, queue: QueueRow, limit: int, recipient: str, lease: int | None, room: Room) -> list[Message | Run]:
    """The next messages, leased for `lease` ms or (None) removed. The queue must be up to date."""
    if queue.settings.paused:
        return []
    chosen = _choose(work, queue, limit, recipient, room)
    rows = [one for one in chosen if isinstance(one, Candidate)]
    packed = [one for one in chosen if isinstance(one, RunRow)]
    given: dict[int, Message | Run] = {}
    if rows:
        given |= _take_away(work, queue, rows) if lease is None else _lease(work, queue, rows, lease)
    if packed:
        given |= runs.take_away(work, queue, packed) if lease is None else runs.lease(work, queue, packed, lease)
    return [given[one.id] for one in chosen]


def _choose(work: Work, queue: QueueRow, limit: int, recipient: str, room: Room) -> list[Candidate | RunRow]:
    chosen: list[Candidate | RunRow] = []
    left = limit
    heads = iter(_heads(work, queue, limit, recipient))
    with closing(runs.ready(work, queue, recipient)) as packed:
        for one in _in_order(work, queue, limit, recipient, heads, packed):
            if not room.holds(one.size):
                return chosen
            if one.length > left:
                break
            chosen.append(one)
            left -= one.length
            if not left:
                return chosen
        else:
            return chosen
    assert isinstance(one, RunRow)
    if left >= runs.SHORTEST:
        return [*chosen, runs.split(work, one, left)]
    if chosen:
        runs.split(work, one, left)
    else:
        runs.unpack(work, [one])  # who reads a few at a time will want the rest of it too
    return [*chosen, *(Candidate(number, 0, None, 0, one.receive_count, False) for number in one.ids[:left])]


def _in_order(
    work: Work, queue: QueueRow, limit: int, recipient: str, *sources: Iterator[Candidate | RunRow]
) -> Iterator[Candidate | RunRow]:
    """What is taken one by one: a key's next competes with the others once the one before it is taken."""
    heap: list[tuple[int, int, Candidate | RunRow, Iterator[Candidate | RunRow]]] = []

    def compete(source: Iterator[Candidate | RunRow]) -> None:
        for one in source:
            heapq.heappush(heap, (-one.priority, one.id, one, source))
            break

    for source in sources:
        compete(source)
    while heap:
        _, _, one, source = heapq.heappop(heap)
        yield one
        limit -= one.length
        compete(source)
        if isinstance(one, Candidate) and one.followed and limit:
            compete(_followers(work, queue, one, limit, recipient))


def _heads(work: Work, queue: QueueRow, limit: int, recipient: str) -> list[Candidate]:
    """The ready messages with rows of their own, in order."""
    most = queue.settings.max_receives
    heads = _some_heads(work, queue, limit, recipient)
    while most and (spent := [head.id for head in heads if head.receive_count >= most]):
        work.bury(queue, spent, "max_receives")  # max_receives was lowered since these were given back
        heads = _some_heads(work, queue, limit, recipient)
    return heads


def _some_heads(work: Work, queue: QueueRow, limit: int, recipient: str) -> list[Candidate]:
    rows = work.all(
        """
        SELECT id, priority, key, octet_length(text), receive_count,
               key IS NOT NULL AND EXISTS (SELECT 1 FROM messages AS next
                                            WHERE next.queue_id = ?1 AND next.key = messages.key
                                              AND next.id > messages.id)
          FROM messages
         WHERE queue_id = ?1 AND recipient = ?2 AND state = 0
         ORDER BY priority DESC, id
         LIMIT ?3
        """,
        (queue.id, recipient, limit),
    )
    return list(map(Candidate._make, rows))


def _followers(work: Work, queue: QueueRow, head: Candidate, limit: int, recipient: str) -> Iterator[Candidate]:
    """The messages behind `head` in its key, as far as this reader may have them."""
    most = queue.settings.max_receives
    for *row, addressee, due_at in work.all(
        "SELECT id, priority, key, octet_length(text), receive_count, 0, recipient, due_at FROM messages "
        "WHERE queue_id = ? AND key = ? AND id > ? ORDER BY id LIMIT ?",
        (queue.id, head.key, head.id, limit),
    ):
        follower = Candidate(*row)
        if addressee != recipient or due_at > work.now or (most and follower.receive_count >= most):
            return
        yield follower


def _take_away(work: Work, queue: QueueRow, chosen: list[Candidate]) -> dict[int, Message]:
    """By id."""
    rows = work.remove(queue, [one.id for one in chosen], received=len(chosen))
    ahead = work.wall(0)  # asked once for all: how far the wall clock is ahead of the service's time
    return {
        number: Message(number, queue.name, text, told(fields, death), sent_at + ahead, count + 1)
        for number, text, fields, death, sent_at, count, *_ in rows
    }


def _lease(work: Work, queue: QueueRow, chosen: list[Candidate], lease: int) -> dict[int, Message]:
    """By id."""
    token = secrets.randbits(63) | 1
    until = work.now + lease
    ids = [one.id for one in chosen]
    # The keys' followers that come along were blocked, all others ready.
    rows = work.all(
        "UPDATE messages SET state = 1, token = ?, due_at = ?, receive_count = receive_count + 1 "
        "WHERE id IN carray(?) RETURNING id, text, fields, death, sent_at, receive_count",
        (token, until, int_array(ids)),
    )
    keyed = [one.key for one in chosen if one.key is not None]
    blocked = len(keyed) - len(set(keyed))
    work.count(queue, ready=blocked - len(ids), blocked=-blocked, leased=len(ids), received=len(ids))
    ahead = work.wall(0)
    return {
        number: Message(
            number, queue.name, text, told(fields, death), sent_at + ahead, count,
            str(Receipt(queue.name, number, token)), until + ahead,
        )
        for number, text, fields, death, sent_at, count in rows
    }  # fmt: skip
