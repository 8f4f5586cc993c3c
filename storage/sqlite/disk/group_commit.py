"""Group commit: many requests, one fsync.

The thread that finds nobody at work leads: it takes all operations that wait, has them run in one transaction,
and wakes their threads when that is on disk. Operations that arrive meanwhile form the next group, led by the
first of them. So a lone request pays no hand-over, and under load the cost of a commit is shared.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from storage.errors import Busy

Context = TypeVar("Context")
T = TypeVar("T")

GROUP_LIMIT = 256  # operations in one transaction: bounds how long the first of a group waits for the last
WAIT_LIMIT = 5.0  # seconds an operation may wait for the write lock before it is given up as Busy


class Ticket(Generic[Context]):
    """One operation on its way. The runner of its group sets `result` or `error`, never both."""

    def __init__(self, operation: Callable[[Context], Any]) -> None:
        self.operation = operation
        self.deadline = time.monotonic() + WAIT_LIMIT
        self.result: Any = None
        self.error: Exception | None = None
        self.leads = False
        self.woken = threading.Lock()  # held until there is something to wake for; cheaper than an Event
        self.woken.acquire()


RunGroup = Callable[[Sequence[Ticket[Context]], Callable[[], Sequence[Ticket[Context]]]], Sequence[Ticket[Context]]]


class GroupCommit(Generic[Context]):
    """`run_group` runs tickets in one durable transaction and gives each its result or error; it does not raise.

    Before it begins it may call what it is given beside them, which returns the tickets that have come meanwhile. It
    returns tickets that it has not begun with: they wait for the next turn, within their own time.
    """

    def __init__(self, run_group: RunGroup[Context]) -> None:
        self.observe: Callable[[int, float], None] = lambda operations, seconds: None  # after each group
        self._run_group = run_group
        self._guard = threading.Lock()
        self._waiting: deque[Ticket[Context]] = deque()
        self._led = False

    def run(self, operation: Callable[[Context], T]) -> T:
        """The operation's result, once its transaction is on disk; or what it raised, nothing of it being kept.

        Raises Busy when its turn did not come within WAIT_LIMIT.
        """
        ticket = Ticket(operation)
        with self._guard:
            self._waiting.append(ticket)
            ticket.leads = not self._led
            self._led = True
        if not ticket.leads:
            self._await_turn(ticket)
        if ticket.leads:
            self._lead(ticket)
        if ticket.error is not None:
            try:
                raise ticket.error
            finally:
                ticket.error = None  # else it would be kept, with the messages in the frames of its traceback
        result: T = ticket.result
        return result

    def _await_turn(self, ticket: Ticket[Context]) -> None:
        if ticket.woken.acquire(timeout=WAIT_LIMIT):
            return
        with self._guard:
            if ticket in self._waiting and not ticket.leads:
                self._waiting.remove(ticket)
                raise Busy
        ticket.woken.acquire()  # it is being run, so its outcome must be known before anything is answered

    def _lead(self, own: Ticket[Context]) -> None:
        group: list[Ticket[Context]] = []

        def gather() -> Sequence[Ticket[Context]]:
            with self._guard:
                room = min(len(self._waiting), GROUP_LIMIT - len(group))
                more = [self._waiting.popleft() for _ in range(room)]
            group.extend(more)
            return more

        began = time.perf_counter()
        left: Sequence[Ticket[Context]] = ()
        try:
            left = self._run_group(gather(), gather)
        except BaseException:  # it should not: but then nobody may take a missing error for success
            for ticket in group:
                ticket.error = RuntimeError("the commit failed; the outcome is unknown")
            raise
        finally:
            if own in left:  # nothing it could wait by: another leads the next turn
                own.error = Busy()
                left = [ticket for ticket in left if ticket is not own]
            with self._guard:
                self._waiting.extendleft(reversed(left))
                successor = self._waiting[0] if self._waiting else None
                if successor is not None:
                    successor.leads = True
                self._led = successor is not None
            if successor is not None:
                successor.woken.release()
            for ticket in group:
                if ticket is not own and ticket not in left:
                    ticket.woken.release()
            self.observe(len(group) - len(left), time.perf_counter() - began)
