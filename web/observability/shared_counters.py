"""Counters in memory that all processes of the service share across the fork.

The master creates the memory and gives each worker a slot, to which only that worker writes. A scrape adds the slots
up. A new worker continues in the slot of an earlier one, so that totals never fall.
"""

from __future__ import annotations

import mmap
import threading
import time
from bisect import bisect_left
from itertools import takewhile

SLOTS = 512  # more than all workers, including those of a reload
ROUTES = 64  # the last is for requests without a route
OTHER_ROUTE = ROUTES - 1
STATUSES = (
    200, 204, 303, 400, 401, 403, 404, 405, 409, 411, 412, 413, 415, 421, 422, 429, 500, 503,
)  # fmt: skip  # and one more for all others

# Upper bounds of the histograms' buckets; one more bucket counts what is above.
REQUEST_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 20.0)
COMMIT_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
COMMIT_OPERATIONS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

_STATUS = {status: place for place, status in enumerate(STATUSES)}
_STATUS_WIDTH = len(STATUSES) + 1
_SECONDS_WIDTH = len(REQUEST_SECONDS) + 2  # a histogram: the counts, then the sum

# Places in a slot.
_USED, _ALIVE, _RUNNING, _WAITING, _COMMITS = range(5)
_OPERATIONS = _COMMITS + len(COMMIT_SECONDS) + 2
_REQUESTS = _OPERATIONS + len(COMMIT_OPERATIONS) + 2
_SECONDS = _REQUESTS + ROUTES * _STATUS_WIDTH
_SIZE = _SECONDS + ROUTES * _SECONDS_WIDTH


class SharedCounters:
    """Memory for `slots` processes; create it before the fork."""

    def __init__(self, slots: int = SLOTS) -> None:
        self.started_at = round(time.time() * 1000)  # ms since 1970
        self._memory = memoryview(mmap.mmap(-1, slots * _SIZE * 8)).cast("d")
        self._slots = [self._memory[place : place + _SIZE] for place in range(0, slots * _SIZE, _SIZE)]

    def take(self) -> WorkerCounters:
        """Return a free slot, or the last one, shared, if there is none."""
        slot = next((slot for slot in self._slots if not slot[_ALIVE]), self._slots[-1])
        slot[_USED] = slot[_ALIVE] = 1
        return WorkerCounters(self, slot)

    def total(self) -> Total:
        return Total([sum(values) for values in zip(*takewhile(lambda slot: slot[_USED], self._slots), strict=True)])


class WorkerCounters:
    """The counters of one process. It is also the observer of its store (storage.model.Observer)."""

    def __init__(self, counts: SharedCounters, memory: memoryview[float]) -> None:
        self.counts = counts
        self._memory = memory
        self._guard = threading.Lock()  # += of two threads could lose one

    def free(self) -> None:
        """Free the slot of a process that has ended."""
        self._memory[_ALIVE] = self._memory[_RUNNING] = self._memory[_WAITING] = 0

    def begin(self) -> None:
        """Count the start of a request."""
        with self._guard:
            self._memory[_RUNNING] += 1

    def end(self, route: int, status: int, seconds: float) -> None:
        memory = self._memory
        place = _SECONDS + route * _SECONDS_WIDTH
        with self._guard:
            memory[_RUNNING] -= 1
            memory[_REQUESTS + route * _STATUS_WIDTH + _STATUS.get(status, len(STATUSES))] += 1
            memory[place + bisect_left(REQUEST_SECONDS, seconds)] += 1
            memory[place + _SECONDS_WIDTH - 1] += seconds

    def committed(self, operations: int, seconds: float) -> None:
        memory = self._memory
        with self._guard:
            memory[_COMMITS + bisect_left(COMMIT_SECONDS, seconds)] += 1
            memory[_OPERATIONS - 1] += seconds
            memory[_OPERATIONS + bisect_left(COMMIT_OPERATIONS, operations)] += 1
            memory[_REQUESTS - 1] += operations

    def waiting(self, readers: int) -> None:
        self._memory[_WAITING] = readers


class Total:
    """The sums of all slots. A histogram is its counts and, last, the sum of the observed values."""

    def __init__(self, values: list[float]) -> None:
        self._values = values
        self.processes, self.running, self.waiting = values[_ALIVE], values[_RUNNING], values[_WAITING]
        self.commits = values[_COMMITS:_OPERATIONS]
        self.operations = values[_OPERATIONS:_REQUESTS]

    def by_status(self) -> dict[int, int]:
        """Return the counts of all routes by status; that of all others is 0."""
        counts = [sum(column) for column in zip(*map(self.requests, range(ROUTES)), strict=True)]
        return dict(zip((*STATUSES, 0), map(int, counts), strict=True))

    def requests(self, route: int) -> list[float]:
        """Return the counts by status, in the order of STATUSES, then of all others."""
        return self._values[_REQUESTS + route * _STATUS_WIDTH :][:_STATUS_WIDTH]

    def seconds(self, route: int) -> list[float]:
        return self._values[_SECONDS + route * _SECONDS_WIDTH :][:_SECONDS_WIDTH]
