"""Giving messages out: which come next, and how they are leased or removed."""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from storage import sqlite_runs as runs
from storage.kept import told
from storage.model import Message, Receipt
from storage.sqlite_work import QueueRow, Room, Work, int_array


class Candidate(NamedTuple):
    """A message that could be taken now. `followed`: later ones of its key wait behind it."""

    id: int
    priority: int
    key: str | None
    size: int
    receive_count: int
    followed: bool


def take(work: Work, queue: QueueRow, limit: int, recipient: str, lease: int | None, room: Room) -> list[Message]:
    """The next messages, leased for `lease` ms or (None) removed. The queue must be up to date."""
    if queue.settings.paused:
        return []
    taken = runs.take(work, queue, limit, recipient, lease, room)
    chosen = _choose(work, queue, limit - len(taken), recipient, room)
    if not chosen:
        return taken
    if lease is None:
        return taken + _take_away(work, queue, chosen)
    return taken + _lease(work, queue, chosen, lease)


def _choose(work: Work, queue: QueueRow, limit: int, recipient: str, room: Room) -> list[Candidate]:
    """In the order in which they would come one by one: a key's next competes once the one before it is taken."""
    if not limit or room.full:
        return []
    heads = _heads(work, queue, limit, recipient)
    chosen: list[Candidate] = []
    heap: list[tuple[int, int, Candidate, Iterator[Candidate]]] = [
        (-head.priority, head.id, head, iter(())) for head in heads
    ]  # sorted, so it is a heap
    while heap and len(chosen) < limit:
        _, _, candidate, run = heapq.heappop(heap)
        if not room.holds(candidate.size):
            break
        chosen.append(candidate)
        if candidate.followed and len(chosen) < limit:
            run = _run(work, queue, candidate, limit - len(chosen), recipient)
        for follower in run:
            heapq.heappush(heap, (-follower.priority, follower.id, follower, run))
            break
    return chosen


def _heads(work: Work, queue: QueueRow, limit: int, recipient: str) -> list[Candidate]:
    while True:
        heads = [
            Candidate(*row)
            for row in work.all(
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
        ]
        most = queue.settings.max_receives
        spent = [head.id for head in heads if most and head.receive_count >= most]
        if not spent:
            return heads
        work.bury(queue, spent, "max_receives")  # max_receives was lowered since these were given back


def _run(work: Work, queue: QueueRow, head: Candidate, limit: int, recipient: str) -> Iterator[Candidate]:
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


def _take_away(work: Work, queue: QueueRow, chosen: list[Candidate]) -> list[Message]:
    rows = work.remove(queue, [one.id for one in chosen], received=len(chosen))
    ahead = work.wall(0)  # asked once for all: how far the wall clock is ahead of the service's time
    taken = {
        number: Message(number, queue.name, text, told(fields, death), sent_at + ahead, count + 1)
        for number, text, fields, death, sent_at, count, *_ in rows
    }
    return [taken[one.id] for one in chosen]


def _lease(work: Work, queue: QueueRow, chosen: list[Candidate], lease: int) -> list[Message]:
    token = secrets.randbits(63) | 1
    until = work.now + lease
    ids = [one.id for one in chosen]
    # The keys' followers that come along were blocked, all others ready.
    rows = work.all(
        "UPDATE messages SET state = 1, token = ?, due_at = ?, receive_count = receive_count + 1 "
        "WHERE id IN carray(?) RETURNING id, text, fields, death, sent_at, receive_count",
        (token, until, int_array(ids)),
    )
    followers = _followers(chosen)
    work.count(queue, ready=followers - len(ids), blocked=-followers, leased=len(ids), received=len(ids))
    ahead = work.wall(0)
    leased = {
        number: Message(
            number, queue.name, text, told(fields, death), sent_at + ahead, count,
            str(Receipt(queue.name, number, token)), until + ahead,
        )
        for number, text, fields, death, sent_at, count in rows
    }  # fmt: skip
    return [leased[number] for number in ids]


def _followers(chosen: Iterable[Candidate]) -> int:
    """How many came along behind an earlier one of their key."""
    keyed = [one.key for one in chosen if one.key is not None]
    return len(keyed) - len(set(keyed))
