"""The service's time: milliseconds since 1970 that only go forward, whatever is done to the wall clock.

Lease deadlines, delays and expiries are compared with this time alone. It is the wall clock as first read
after the machine's boot, carried on by the boot-time clock, so that an hour forward or back (NTP, an
operator, daylight tables gone wrong) neither ends a lease early nor makes one twice as long. The offset
between the two is kept with the data, so that all processes and restarts share it until the next boot.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_STEP = 1_000  # ms; a smaller difference between wall clock and service time is slew and rounding, not a step


class Clock(Protocol):
    def now(self) -> int:
        """The service's time in ms since 1970; never goes backwards."""

    def wall(self, moment: int) -> int:
        """A moment of the service's time (ms) as the wall clock would show it now (ms since 1970)."""


class BootClock:
    """The Clock of a real machine. `offset` is ms to add to the boot-time clock."""

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._step = 0

    def now(self) -> int:
        return self._offset + since_boot()

    def wall(self, moment: int) -> int:
        step = round(time.time() * 1000) - self.now()
        if abs(step - self._step) >= _STEP:
            self._step = step if abs(step) >= _STEP else 0
        return moment + self._step


def since_boot() -> int:
    """Milliseconds since the machine's boot; the same in every process."""
    return time.clock_gettime_ns(_BOOT_CLOCK) // 1_000_000


def boot_id() -> str:
    """Names this boot of the machine; "" where the system does not name it (then each opening sets the clock)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def first_offset(not_before: int) -> int:
    """The offset (ms) for a clock that shows the wall clock's time now, or `not_before` (ms) if that is later."""
    return max(round(time.time() * 1000), not_before) - since_boot()
