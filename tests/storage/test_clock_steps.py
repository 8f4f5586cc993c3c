"""The service's time beside a wall clock that is set: every step is followed where times are shown, and no slew is."""

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
    """The machine was booted 5 s before NOW, and no time goes by."""
    wall_clock = WallClock()
    monkeypatch.setattr(time, "time", wall_clock.time)
    monkeypatch.setattr(module, "since_boot", lambda: 5_000)
    return wall_clock


def test_a_clock_begins_with_the_wall_clocks_time_or_where_it_stood_when_that_was_later(wall_clock: WallClock) -> None:
    assert BootClock(first_offset(not_before=0)).now() == NOW
    assert BootClock(first_offset(not_before=NOW - HOUR)).now() == NOW
    assert BootClock(first_offset(not_before=NOW + HOUR)).now() == NOW + HOUR


def test_a_step_of_the_wall_clock_moves_what_is_shown_and_not_the_services_time(wall_clock: WallClock) -> None:
    clock = BootClock(first_offset(not_before=0))
    for ahead in (HOUR, -HOUR, 0, 1_000, 0):
        wall_clock.ahead = ahead
        assert (clock.now(), clock.wall(NOW + 7)) == (NOW, NOW + 7 + ahead)


def test_slew_is_not_shown_so_that_the_same_moment_stays_the_same(wall_clock: WallClock) -> None:
    clock = BootClock(first_offset(not_before=0))
    for ahead in (1, 500, 999, -999):
        wall_clock.ahead = ahead
        assert clock.wall(NOW) == NOW
    wall_clock.ahead = HOUR
    assert clock.wall(NOW) == NOW + HOUR
    wall_clock.ahead = HOUR + 999
    assert clock.wall(NOW) == NOW + HOUR
    wall_clock.ahead = 999  # set back, nearly
    assert clock.wall(NOW) == NOW
    wall_clock.ahead = 0
    assert clock.wall(NOW) == NOW


def test_time_goes_on_while_the_machine_sleeps() -> None:
    assert abs(module.since_boot() - time.clock_gettime(time.CLOCK_BOOTTIME) * 1000) < 1_000
    assert module._BOOT_CLOCK == time.CLOCK_BOOTTIME  # a test cannot put the machine to sleep
