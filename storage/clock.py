"""The service's time: milliseconds since 1970 that never go backwards, even if the wall clock is changed.

Lease deadlines, delays and expiries use only this time. It starts as the wall clock's time at the first reading after
the machine's boot, and continues by the boot-time clock. A wall clock that jumps by an hour (NTP, an operator, a wrong
time zone) therefore neither ends a lease early nor makes it longer. The offset between the two clocks is stored with
the data, so all processes share it until the next boot.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_STEP = 1_000  # ms; a smaller difference from the wall clock is slew and rounding


class Clock(Protocol):
    def now(self) -> int:
        """Return the service's time in ms since 1970; it never goes backwards."""

    def wall(self, moment: int) -> int:
        """Convert a moment of the service's time (ms) to what the wall clock would show now (ms since 1970)."""


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
    """Return the milliseconds since the machine's boot; all processes get the same value."""
    return time.clock_gettime_ns(_BOOT_CLOCK) // 1_000_000


def boot_id() -> str:
    """Return the id of this boot of the machine, or "" if the system has none: then each opening sets the clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def first_offset(not_before: int) -> int:
    """Return the offset (ms) of a clock that now shows the wall clock's time, or `not_before` (ms) if that is later."""
    return max(round(time.time() * 1000), not_before) - since_boot()
