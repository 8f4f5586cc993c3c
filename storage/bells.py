"""Bells: how the processes of one service wake each other's waiting readers, at once and without looking.

They are made before the processes are forked, and each process takes one. Whoever has committed something rings those
of the processes in which a reader waits.
"""

from __future__ import annotations

import mmap
import os
import select
from contextlib import suppress


class Bells:
    """As many as there may be processes at once; who gets none is not rung."""

    def __init__(self, count: int) -> None:
        self.waiting = memoryview(mmap.mmap(-1, count))  # by place, whether a reader waits there: shared by all
        self._all = [Bell(self, place) for place in range(count)]
        self._free = list(reversed(self._all))

    def take(self) -> Bell:
        """A free one; in the process that made them."""
        return self._free.pop() if self._free else Bell(self, None)

    def give_back(self, bell: Bell) -> None:
        """Its process has ended, however that was."""
        if bell.place is not None:
            self.waiting[bell.place] = 0
            self._free.append(bell)

    def ring_others(self, own: Bell) -> None:
        for place, waits in enumerate(self.waiting):
            if waits and place != own.place:
                self._all[place].ring()


class Bell:
    """Wakes the one thread that waits for it, from any thread of any process that has it. Rung again it rings once."""

    def __init__(self, bells: Bells | None = None, place: int | None = None) -> None:
        self.place = place
        self._bells = bells
        self._hears, self._rings = os.pipe()
        for end in (self._hears, self._rings):
            os.set_blocking(end, False)
        self._poll = select.poll()
        self._poll.register(self._hears, select.POLLIN)

    @property
    def is_shared(self) -> bool:
        """Whether other processes ring it."""
        return self.place is not None

    def wanted(self, wanted: bool) -> None:
        """Whether other processes are to ring it."""
        if self._bells is not None and self.place is not None:
            self._bells.waiting[self.place] = wanted

    def ring(self) -> None:
        """Takes no lock: a signal handler may call it."""
        with suppress(BlockingIOError):  # full: it has been rung often enough
            os.write(self._rings, b"!")

    def ring_others(self) -> None:
        """Those of the other processes that want it."""
        if self._bells is not None:
            self._bells.ring_others(self)

    def wait(self, seconds: float) -> bool:
        """Whether it was rung since the last call, or is within so many seconds."""
        if not self._poll.poll(seconds * 1000):
            return False
        with suppress(BlockingIOError):
            os.read(self._hears, 65_536)
        return True

    def __del__(self) -> None:
        """Not before the last who may ring it has gone: the number of a closed pipe may be another file's by then."""
        os.close(self._hears)
        os.close(self._rings)
