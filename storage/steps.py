"""Requests of several transactions: bounded steps that a repeated request with its Idempotency-Key continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeVar

from storage.errors import Busy, Interrupted, InvalidInput, Unavailable
from storage.model import IdempotencyKey, NewMessage
from storage.validation import MAX_TRANSACTION_QUEUES

T = TypeVar("T")
Progress = dict[str, Any]  # of a request: a JSON object

RETRY_FOR = 5.0  # seconds


class Transaction(Protocol):
    """The transaction of a step. The store as a whole keeps the keys for REQUEST_WINDOW."""

    def recall(self, once: IdempotencyKey) -> Any:
        """Return the value stored under this key, None if there is none. Raises IdempotencyMismatch."""

    def remember(self, once: IdempotencyKey, value: Any) -> None:
        """Store a JSON value under this key, in place of an earlier one."""


C = TypeVar("C", bound=Transaction)


def in_steps(
    run: Callable[[Callable[[C], tuple[Progress, bool]]], tuple[Progress, bool]],
    start: Progress,
    step: Callable[[C, Progress], tuple[Progress, bool]],
    done: Callable[[Progress], str | None],
    once: IdempotencyKey | None = None,
) -> Progress:
    """Run `step` in successive transactions until it returns that nothing is left; return the progress.

    With `once` each transaction also stores the progress: a repeated call continues from it, or returns the result.
    `done` describes a progress in a clause, None for nothing. Raises Interrupted if a later step fails.
    """

    def operation(work: C) -> tuple[Progress, bool]:
        at, more = (work.recall(once) if once else None) or (progress, True)
        if more:
            at, more = step(work, at)
            if once:
                work.remember(once, [at, more])
        return at, more

    progress, more = start, True
    while more:
        try:
            progress, more = run(operation)
        except Unavailable as fault:
            clause = done(progress)
            if clause is None:
                raise
            raise Interrupted(clause, fault) from fault
    return progress


def until_done(attempt: Callable[[], T | None]) -> T:
    """Call `attempt` until it returns a result other than None, and return that. Raises Busy after ASK_AGAIN_FOR."""
    deadline = time.monotonic() + RETRY_FOR
    while (result := attempt()) is None:
        if time.monotonic() > deadline:
            raise Busy("too many due messages to process in time")
    return result


def group_by_queue(messages: Sequence[tuple[str, NewMessage]]) -> dict[str, list[int]]:
    """Return the places of each queue's messages, in order of name: all transactions lock queues in this order."""
    places: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(messages):
        places.setdefault(name, []).append(place)
    return dict(sorted(places.items()))


def check_queues(names: Collection[str]) -> None:
    """Raise InvalidInput for more queues than one transaction may use."""
    if len(names) > MAX_TRANSACTION_QUEUES:
        raise InvalidInput(f"the receipts and messages belong to more than {MAX_TRANSACTION_QUEUES} queues")


def describe_progress(count: int | None, action: str) -> str | None:
    """Return the clause that an interrupted request reports, or None if nothing was done."""
    return f"{count:,} messages were {action}" if count else None
