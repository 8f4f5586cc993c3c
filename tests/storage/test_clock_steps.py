"""Test the service's time beside a wall clock that is set: shown times follow steps, and not slew."""

from __future__ import annotations

import time

import pytest

from storage import clock as module
from storage.clock import BootClock, first_offset

NOW = 1_800_000_000_000  # ms
HOUR = 3_600_000


class WallClock:
    def __init__(self) -> None:
        self.ahead = 0  # ms

    def time(self) -> float:
        return (NOW + self.ahead) / 1000


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    """Fake a machine that was booted 5 s before NOW, with time stopped."""
    wall_clock = WallClock()
    monkeypatch.setattr(time, "time", wall_clock.time)
    monkeypatch.setattr(module, "since_boot", lambda: 5_000)
    return wall_clock


def test_a_clock_starts_with_the_later_of_the_wall_clock_and_its_last_time(wall_clock: WallClock) -> None:
    assert BootClock(first_offset(not_before=0)).now() == NOW
    assert BootClock(first_offset(not_before=NOW - HOUR)).now() == NOW
    assert BootClock(first_offset(not_before=NOW + HOUR)).now() == NOW + HOUR


def test_a_step_of_the_wall_clock_changes_shown_times_and_not_the_services_time(wall_clock: WallClock) -> None:
    clock = BootClock(first_offset(not_before=0))
    for ahead in (HOUR, -HOUR, 0, 1_000, 0):
        wall_clock.ahead = ahead
        assert (clock.now(), clock.wall(NOW + 7)) == (NOW, NOW + 7 + ahead)


def test_clock_slew_does_not_change_shown_times(wall_clock: WallClock) -> None:
    clock = BootClock(first_offset(not_before=0))
    for ahead in (1, 500, 999, -999):
        wall_clock.ahead = ahead
        assert clock.wall(NOW) == NOW
    wall_clock.ahead = HOUR
    assert clock.wall(NOW) == NOW + HOUR
    wall_clock.ahead = HOUR + 999
    assert clock.wall(NOW) == NOW + HOUR
    wall_clock.ahead = 999  # set back by almost a step
    assert clock.wall(NOW) == NOW
    wall_clock.ahead = 0
    assert clock.wall(NOW) == NOW


def test_time_continues_while_the_machine_sleeps() -> None:
    assert abs(module.since_boot() - time.clock_gettime(time.CLOCK_BOOTTIME) * 1000) < 1_000
    assert module._BOOT_CLOCK == time.CLOCK_BOOTTIME  # a test cannot put the machine to sleep
