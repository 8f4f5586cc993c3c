"""Group commit: many requests, one fsync.

All waiting operations run in one transaction, and their tasks continue when it is on disk. A thread that finds no
transaction under way runs one for all that wait. The tasks of a loop wait for its next turn (storage/scheduling.py).
Operations that arrive meanwhile form the next group. So a lone request waits for no other, and under load many requests
share the cost of a commit.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Generic, TypeVar

from storage.errors import Busy
from storage.scheduling import InThread, Scheduler, Task, Threads
from storage.sqlite.disk.lock import FileLock

Context = TypeVar("Context")
T = TypeVar("T")

GROUP_LIMIT = 256  # operations in one transaction; limits how long the first waits for the last
WAIT_LIMIT = 5.0  # seconds an operation may wait for the write lock before it fails with Busy
SLOW = 0.05  # seconds of a commit after which a thread runs the next one, because the disk may stall


class Ticket(Generic[Context]):
    """One operation and its outcome. The runner of its group sets `result` or `error`, never both."""

    __slots__ = ("deadline", "done", "error", "operation", "result", "task")

    def __init__(self, operation: Callable[[Context], Any], task: Task) -> None:
        self.operation = operation
        self.task = task
        self.deadline = time.monotonic() + WAIT_LIMIT
        self.result: Any = None
        self.error: Exception | None = None
        self.done = False


Tickets = Sequence[Ticket[Context]]
RunGroup = Callable[[Tickets[Context], Callable[[], Tickets[Context]], bool], Tickets[Context]]


class GroupCommit(Generic[Context]):
    """A queue of operations that `run_group` commits in groups.

    `run_group` runs tickets in one durable transaction and sets the result or error of each; it does not raise. Its
    second argument returns the tickets that have arrived meanwhile; it may call it before it runs any. It returns the
    tickets that it did not start. They wait for the next turn, until their own deadlines. Its last argument says
    whether it may wait for the lock.
    """

    def __init__(
        self,
        run_group: RunGroup[Context],
        scheduler: Scheduler | None = None,
        lock: FileLock | None = None,
    ) -> None:
        """Take the lock between processes too: a loop, which cannot wait for it, reserves it for its next turn."""
        self.observe: Callable[[int, float], None] = lambda operations, seconds: None  # after each group
        self._run_group = run_group
        self._scheduler = scheduler or Threads()
        self._guard = threading.Lock()
        self._waiting: deque[Ticket[Context]] = deque()
        self._led = False
        self._lock = lock
        self._is_reserving = False  # for the next turn
        self._slow = False
        self._scheduler.on_turn(self._turn)

    def run(self, operation: Callable[[Context], T]) -> T:
        """Run the operation and return its result once its transaction is on disk.

        Raises what the operation raises; its changes are then undone. Raises Busy if its turn does not come within
        WAIT_LIMIT.
        """
        ticket = Ticket(operation, task := self._scheduler.current())
        with self._guard:
            self._waiting.append(ticket)
        ends_at = inf if task.is_driven else ticket.deadline
        while not ticket.done:
            if not task.is_driven and self._begin():
                self._lead(may_wait=True)
            elif not task.wait(None if ends_at == inf else ends_at - time.monotonic()):
                self._give_up(ticket)
                ends_at = inf  # a group runs it: wait for its outcome, which the reply must report
        if ticket.error is not None:
            try:
                raise ticket.error
            finally:
                ticket.error = None  # its traceback would keep the messages in its frames in memory
        if ticket.result is None:  # the caller asks again, because there was more to do than fits in one turn
            task.is_heavy = True
        result: T = ticket.result
        return result

    def _begin(self) -> bool:
        """Return whether the caller leads the next group."""
        with self._guard:
            begins = bool(self._waiting) and not self._led
            self._led = self._led or begins
        return begins

    def _turn(self, in_thread: InThread) -> None:
        """Commit for the scheduler's tasks: in the loop if that is quick, otherwise in a thread."""
        if not (self._waiting or self._is_reserving):
            return
        now = time.monotonic()
        with self._guard:
            late = [ticket for ticket in self._waiting if ticket.task.is_driven and ticket.deadline <= now]
            quick = not self._slow and not any(ticket.task.is_heavy for ticket in self._waiting)
        for ticket in late:
            self._give_up(ticket)
        if self._lock is not None and self._waiting and quick:
            self._is_reserving = not self._lock.reserve(self._wake_next)
            if self._is_reserving:
                return  # another process commits
        if self._begin():
            if not (quick and self._lead(may_wait=False)):
                in_thread(lambda: self._lead(may_wait=True))
        elif self._lock is not None and not self._waiting:
            self._is_reserving = False
            self._lock.cancel()

    def _give_up(self, ticket: Ticket[Context]) -> None:
        """Fail the ticket with Busy, unless a group runs it."""
        with self._guard:
            if ticket not in self._waiting:
                return
            self._waiting.remove(ticket)
            ticket.error = Busy()
            ticket.done = True
        ticket.task.wake()
        self._wake_next()  # this ticket's task may have been woken to lead

    def _lead(self, *, may_wait: bool) -> bool:
        """Run a group; return False if a thread must continue with it."""
        group: list[Ticket[Context]] = []

        def gather() -> Tickets[Context]:
            with self._guard:
                room = min(len(self._waiting), GROUP_LIMIT - len(group))
                more = [self._waiting.popleft() for _ in range(room)]
            group.extend(more)
            return more

        began = time.perf_counter()
        left: Tickets[Context] = ()
        try:
            left = self._run_group(gather(), gather, may_wait)
        except BaseException:  # a bug, but a ticket without an error would look like a success
            for ticket in group:
                ticket.error = RuntimeError("the commit failed; the outcome is unknown")
            raise
        finally:
            with self._guard:
                self._waiting.extendleft(reversed(left))
                self._led = goes_on = bool(left) and not may_wait
            self._end([ticket for ticket in group if not left or ticket not in left], time.perf_counter() - began)
        return not goes_on

    def _end(self, group: Tickets[Context], seconds: float) -> None:
        for ticket in group:
            ticket.done = True
            ticket.task.wake()
        self._wake_next()
        if group:
            self._slow = seconds > SLOW
            self.observe(len(group), seconds)

    def _wake_next(self) -> None:
        with self._guard:
            following = self._waiting[0] if self._waiting else None
        if following is not None:
            following.task.wake()
