"""Bells: how the processes of one service wake each other's waiting readers, at once and without looking.

They are made before the processes are forked, and each process takes one. Whoever has committed something rings those
of the processes in which a reader waits.
"""

from __future__ import annotations

import mmap
import os
import select
from contextlib import suppress


class WakeupPipes:
    """As many as there may be processes at once; who gets none is not rung."""

    def __init__(self, count: int) -> None:
        self.waiting = memoryview(mmap.mmap(-1, count))  # by place, whether a reader waits there: shared by all
        self._all = [WakeupPipe(self, place) for place in range(count)]
        self._free = list(reversed(self._all))

    def take(self) -> WakeupPipe:
        """A free one; in the process that made them."""
        return self._free.pop() if self._free else WakeupPipe(self, None)

    def release(self, wakeup_pipe: WakeupPipe) -> None:
        """Its process has ended, however that was."""
        if wakeup_pipe.place is not None:
            self.waiting[wakeup_pipe.place] = 0
            self._free.append(wakeup_pipe)

    def wake_others(self, own: WakeupPipe) -> None:
        for place, waits in enumerate(self.waiting):
            if waits and place != own.place:
                self._all[place].wake()


class WakeupPipe:
    """Wakes the one thread that waits for it, from any thread of any process that has it. Rung again it rings once."""

    def __init__(self, wakeup_pipes: WakeupPipes | None = None, place: int | None = None) -> None:
        self.place = place
        self._wakeup_pipes = wakeup_pipes
        self._read_end, self._write_end = os.pipe()
        for end in (self._read_end, self._write_end):
            os.set_blocking(end, False)
        self._poll = select.poll()
        self._poll.register(self._read_end, select.POLLIN)

    @property
    def is_shared(self) -> bool:
        """Whether other processes ring it."""
        return self.place is not None

    def wanted(self, wanted: bool) -> None:
        """Whether other processes are to ring it."""
        if self._wakeup_pipes is not None and self.place is not None:
            self._wakeup_pipes.waiting[self.place] = wanted

    def wake(self) -> None:
        """Takes no lock: a signal handler may call it."""
        with suppress(BlockingIOError):  # full: it has been rung often enough
            os.write(self._write_end, b"!")

    def wake_others(self) -> None:
        """Those of the other processes that want it."""
        if self._wakeup_pipes is not None:
            self._wakeup_pipes.wake_others(self)

    def wait(self, seconds: float) -> bool:
        """Whether it was rung since the last call, or is within so many seconds."""
        if not self._poll.poll(seconds * 1000):
            return False
        with suppress(BlockingIOError):
            os.read(self._read_end, 65_536)
        return True

    def __del__(self) -> None:
        """Not before the last who may ring it has gone: the number of a closed pipe may be another file's by then."""
        os.close(self._read_end)
        os.close(self._write_end)
