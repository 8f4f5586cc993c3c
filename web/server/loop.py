"""Run many requests in one thread: each runs in a greenlet until it waits, and then another continues."""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import count
from math import inf
from typing import TypeVar

from greenlet import getcurrent, greenlet

from storage.scheduling import Task as AnyTask
from storage.scheduling import Thread, Turn

T = TypeVar("T")

SPARE = 256  # idle greenlets that are kept for later requests


class Task(greenlet):
    """A greenlet that runs one function after the other for a Loop."""

    is_driven = True

    def __init__(self, loop: Loop) -> None:
        super().__init__(parent=getcurrent())
        self.is_heavy = self.is_waiting = False
        self.job: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] = _nothing  # called after other tasks may have run
        self._loop = loop
        self._woken = self._expired = False
        self._timer = 0

    def run(self) -> None:
        while self.job is not None:
            self.job()
            self.job, self.on_resume, self.is_heavy = None, _nothing, False
            self._loop.retire(self)

    def wait(self, seconds: float | None = None) -> bool:
        self._timer = 0 if seconds is None else self._loop.set_timer(self, seconds)
        self._expired, self.is_waiting = False, True
        while not (self._woken or self._expired):
            self._loop.switch()
        self._timer, self.is_waiting = 0, False
        self.on_resume()
        woken, self._woken = self._woken, False
        return woken

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._loop.resume(self)

    def expire(self, timer: int) -> None:
        """End the wait that set the timer of this number."""
        if timer == self._timer:
            self._expired = True
            self.switch()


class Loop:
    """The Scheduler of the thread that creates it. Blocking functions run in the threads of `calls`."""

    presence_every = inf  # the worker wakes a task when its client disconnects

    def __init__(self, calls: Executor) -> None:
        self._calls = calls
        self._commits = ThreadPoolExecutor(1, "queue-commit")
        self._thread = threading.get_ident()
        self._hub = getcurrent()
        self._spare: list[Task] = []
        self._ready: deque[Task] = deque()
        self._posted: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Task]] = []
        self._numbers = count(1)
        self._turns: list[Turn] = []
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # readable when the loop has work
        self._rung = self.is_committing = False

    def current(self) -> AnyTask:
        task = getcurrent()
        return task if isinstance(task, Task) else Thread()

    def start(self, run: Callable[[], None], name: str) -> Callable[[], None]:
        self.post(lambda: self.run(run))
        return _nothing  # a task ends with its loop

    def call(self, do: Callable[[], T]) -> T:
        task = self.current()
        if not task.is_driven:
            return do()
        future = self._calls.submit(do)
        future.add_done_callback(lambda _: task.wake())
        while not future.done():
            task.wait()
        return future.result()

    def on_turn(self, turn: Turn) -> None:
        self._turns.append(turn)

    def run(self, job: Callable[[], None]) -> None:
        """Run a function as a task, until it waits or ends. Only the loop's own thread may call this."""
        task = self._spare.pop() if self._spare else Task(self)
        task.job = job
        task.switch()

    def post(self, call: Callable[[], None]) -> None:
        """Have the loop call this function. Any thread may call `post`."""
        self._posted.append(call)
        self._ring()

    def turn(self) -> float:
        """Run the tasks that are ready, commit, and run them again. Return the seconds until the next timer."""
        self._run_ready()
        self.is_committing = True
        for turn in self._turns:
            turn(self._in_thread)
        self.is_committing = False
        self._run_ready()
        if self._posted or self._ready:
            return 0.0
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else inf

    def hush(self) -> None:
        """Reset the bell after it was readable."""
        os.eventfd_read(self.bell)
        self._rung = False  # before the loop looks for the work, so that later work rings again

    # -- for its tasks

    def switch(self) -> None:
        self._hub.switch()

    def resume(self, task: Task) -> None:
        self._ready.append(task)
        if threading.get_ident() != self._thread:
            self._ring()

    def set_timer(self, task: Task, seconds: float) -> int:
        number = next(self._numbers)
        heapq.heappush(self._timers, (time.monotonic() + seconds, number, task))
        return number

    def retire(self, task: Task) -> None:
        if len(self._spare) < SPARE:
            self._spare.append(task)
            self.switch()

    def _run_ready(self) -> None:
        for _ in range(len(self._posted)):
            self._posted.popleft()()
        for _ in range(len(self._ready)):
            if (task := self._ready.popleft()).is_waiting:
                task.switch()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, number, task = heapq.heappop(self._timers)
            task.expire(number)

    def _in_thread(self, run: Callable[[], object]) -> None:
        self._commits.submit(run)

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            os.eventfd_write(self.bell, 1)


def _nothing() -> None:
    pass
