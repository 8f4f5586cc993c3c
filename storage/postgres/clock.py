"""The service's time on many machines: each node's boot-time clock, adjusted to one shared clock.

The shared time is the database server's wall clock plus the offset in the table `clock`. A node reads it at the start,
continues by its own boot-time clock, and follows the shared time in small steps. A difference of a second or more means
that the server's clock was set, or that another server took over. The first node that notices corrects the table, so
that the service's time continues undisturbed, and the other nodes follow the table.
"""

from __future__ import annotations

from storage.clock import BootClock, since_boot
from storage.postgres.pool import Pool, scalar

STEP = 1_000  # ms; a smaller difference is drift and the duration of the query …
SLEW = 20  # ms: … and is corrected by at most so much at a time
MAX_QUERY_TIME = 250  # ms; ignore the result of a slower query

_SERVER = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"


class SharedClock(BootClock):
    """The Clock of one node."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._ahead: int = scalar(pool.read("SELECT ahead FROM queue_service.clock"))
        super().__init__(self._difference() + self._ahead)
        self._shown = 0

    def now(self) -> int:
        # A correction backwards stops the time for a moment.
        self._shown = max(self._shown, super().now())
        return self._shown

    def adjust(self) -> None:
        """Follow the shared time; call this about every second."""
        before = since_boot()
        ((ahead, server),) = self._pool.read(f"SELECT ahead, {_SERVER} FROM queue_service.clock")
        after = since_boot()
        if after - before > MAX_QUERY_TIME:
            return  # this process or the server was delayed, so the result is inexact
        difference = server + ahead - (self._offset + after)
        if abs(difference) < STEP:
            self._offset += max(-SLEW, min(SLEW, difference))
        elif ahead != self._ahead:
            self._offset += difference
        else:
            corrected = self._pool.run(
                "UPDATE queue_service.clock SET ahead = $1::bigint WHERE ahead = $2::bigint RETURNING ahead",
                ahead - difference,
                ahead,
            )
            ahead = scalar(corrected) if corrected else ahead  # else another node was first: the next call follows it
        self._ahead = ahead

    def _difference(self) -> int:
        """Return the ms from the boot-time clock to the server's clock, by the fastest of three queries."""
        tries: list[tuple[int, int]] = []
        for _ in range(3):
            before = since_boot()
            server: int = scalar(self._pool.read(f"SELECT {_SERVER}"))
            after = since_boot()
            tries.append((after - before, server - after))
        return min(tries)[1]
