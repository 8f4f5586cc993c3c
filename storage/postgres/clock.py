"""The service's time on many machines: each node's boot-time clock, set by the one clock they share.

The shared time is the database server's wall clock plus what the table `clock` says it is behind. A node takes it
when it begins, goes on by its own boot-time clock, and follows the shared one in small steps. When the two come apart
by a second or more, somebody has set the server's clock, or another server has taken over: the first node to notice
corrects the table, so that the service's time goes on as if nothing had happened, and the others follow the table.
"""

from __future__ import annotations

from storage.clock import BootClock, since_boot
from storage.postgres.pool import Pool, flat

STEP = 1_000  # ms; a smaller difference is drift and the time a question takes …
SLEW = 20  # ms: … and is followed by so much at a time
PATIENCE = 250  # ms a question may take for its answer to count

_SERVER = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"


class SharedClock(BootClock):
    """The Clock of one node."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._ahead: int = flat(pool.read("SELECT ahead FROM queue_service.clock"))
        super().__init__(self._difference() + self._ahead)
        self._shown = 0

    def now(self) -> int:
        # A correction backwards stops time for a moment.
        self._shown = max(self._shown, super().now())
        return self._shown

    def adjust(self) -> None:
        """Follows the shared time; called every second or so."""
        before = since_boot()
        ((ahead, server),) = self._pool.read(f"SELECT ahead, {_SERVER} FROM queue_service.clock")
        after = since_boot()
        if after - before > PATIENCE:
            return  # this process or the server was held up, so the answer says little
        apart = server + ahead - (self._offset + after)
        if abs(apart) < STEP:
            self._offset += max(-SLEW, min(SLEW, apart))
        elif ahead != self._ahead:
            self._offset += apart
        else:
            corrected = self._pool.run(
                "UPDATE queue_service.clock SET ahead = $1::bigint WHERE ahead = $2::bigint RETURNING ahead",
                ahead - apart,
                ahead,
            )
            ahead = flat(corrected) if corrected else ahead  # else another node was first, and next time is followed
        self._ahead = ahead

    def _difference(self) -> int:
        """ms from the boot-time clock to the server's; of three tries the one that took least time."""
        tries: list[tuple[int, int]] = []
        for _ in range(3):
            before = since_boot()
            server: int = flat(self._pool.read(f"SELECT {_SERVER}"))
            after = since_boot()
            tries.append((after - before, server - after))
        return min(tries)[1]
