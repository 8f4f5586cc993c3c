"""Verbs of several transactions: bounded steps, with which a request repeated by its Idempotency-Key goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeVar

from storage.errors import Busy, Interrupted, InvalidInput, Unavailable
from storage.model import IdempotencyKey, NewMessage
from storage.validation import MAX_TRANSACTION_QUEUES

T = TypeVar("T")
Progress = dict[str, Any]  # of a verb: what JSON can hold

ASK_AGAIN_FOR = 5.0  # seconds


class Transaction(Protocol):
    """What a step finds in its transaction. Keys are the store's as a whole, kept for REQUEST_WINDOW."""

    def recall(self, once: IdempotencyKey) -> Any:
        """Return what was remembered under this key, None for nothing. Raises IdempotencyMismatch."""

    def remember(self, once: IdempotencyKey, value: Any) -> None:
        """Keep a JSON value under this key, in place of what was kept there."""


C = TypeVar("C", bound=Transaction)


def in_steps(
    run: Callable[[Callable[[C], tuple[Progress, bool]]], tuple[Progress, bool]],
    start: Progress,
    step: Callable[[C, Progress], tuple[Progress, bool]],
    done: Callable[[Progress], str | None],
    once: IdempotencyKey | None = None,
) -> Progress:
    """Run `step` in one transaction after the other until it returns that nothing more is left; return the progress.

    With `once` each transaction keeps the progress too: a repeated call goes on there, or returns the same. `done` says
    in a clause what was done by some progress, None for nothing. Raises Interrupted where a step fails after that.
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


def ask_again(attempt: Callable[[], T | None]) -> T:
    """Return what `attempt` does, called until that is not None. Raises Busy when that takes too long."""
    deadline = time.monotonic() + ASK_AGAIN_FOR
    while (result := attempt()) is None:
        if time.monotonic() > deadline:
            raise Busy("too many due messages to process in time")
    return result


def group_by_queue(messages: Sequence[tuple[str, NewMessage]]) -> dict[str, list[int]]:
    """Return the places of each queue's messages, in order of name: all transactions take queues in this order."""
    places: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(messages):
        places.setdefault(name, []).append(place)
    return dict(sorted(places.items()))


def check_queues(names: Collection[str]) -> None:
    """Raise InvalidInput for more than one transaction deals with."""
    if len(names) > MAX_TRANSACTION_QUEUES:
        raise InvalidInput(f"the receipts and messages belong to more than {MAX_TRANSACTION_QUEUES} queues")


def report_of(count: int | None, deed: str) -> str | None:
    """Return what an interrupted request reports as done, or None if that is nothing."""
    return f"{count:,} messages were {deed}" if count else None
