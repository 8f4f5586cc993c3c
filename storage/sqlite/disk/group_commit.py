"""Group commit: many requests, one fsync.

A thread that finds no leader becomes the leader. It runs all waiting operations in one transaction, and wakes their
threads when the transaction is on disk. Operations that arrive meanwhile form the next group, and the first of them
leads it. So a lone request needs no other thread, and under load many requests share the cost of a commit.
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

GROUP_LIMIT = 256  # operations in one transaction; limits how long the first waits for the last
WAIT_LIMIT = 5.0  # seconds an operation may wait for the write lock before it fails with Busy


class Ticket(Generic[Context]):
    """One operation and its outcome. The runner of its group sets `result` or `error`, never both."""

    def __init__(self, operation: Callable[[Context], Any]) -> None:
        self.operation = operation
        self.deadline = time.monotonic() + WAIT_LIMIT
        self.result: Any = None
        self.error: Exception | None = None
        self.leads = False
        self.woken = threading.Lock()  # released to wake the thread; cheaper than an Event
        self.woken.acquire()


RunGroup = Callable[[Sequence[Ticket[Context]], Callable[[], Sequence[Ticket[Context]]]], Sequence[Ticket[Context]]]


class GroupCommit(Generic[Context]):
    """A queue of operations that `run_group` commits in groups.

    `run_group` runs tickets in one durable transaction and sets the result or error of each; it does not raise. Its
    second argument returns the tickets that have arrived meanwhile; it may call it before it runs any. It returns the
    tickets that it did not start. They wait for the next turn, until their own deadlines.
    """

    def __init__(self, run_group: RunGroup[Context]) -> None:
        self.observe: Callable[[int, float], None] = lambda operations, seconds: None  # after each group
        self._run_group = run_group
        self._guard = threading.Lock()
        self._waiting: deque[Ticket[Context]] = deque()
        self._led = False

    def run(self, operation: Callable[[Context], T]) -> T:
        """Run the operation and return its result once its transaction is on disk.

        Raises what the operation raises; its changes are then undone. Raises Busy if its turn does not come within
        WAIT_LIMIT.
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
                ticket.error = None  # its traceback would keep the messages in its frames in memory
        result: T = ticket.result
        return result

    def _await_turn(self, ticket: Ticket[Context]) -> None:
        if ticket.woken.acquire(timeout=WAIT_LIMIT):
            return
        with self._guard:
            if ticket in self._waiting and not ticket.leads:
                self._waiting.remove(ticket)
                raise Busy
        ticket.woken.acquire()  # the leader runs it: wait for its outcome, which the reply must report

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
        except BaseException:  # a bug, but a ticket without an error would look like a success
            for ticket in group:
                ticket.error = RuntimeError("the commit failed; the outcome is unknown")
            raise
        finally:
            if own in left:  # this thread cannot wait again, because another one leads the next turn
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
