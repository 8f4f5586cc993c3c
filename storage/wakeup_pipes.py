"""Wake-up pipes, by which the processes of one service wake each other's waiting readers without polling.

The parent creates them before it forks, and assigns one to each process. After a commit, a process writes to the pipes
of the processes in which readers wait.
"""

from __future__ import annotations

import mmap
import os
import select
from contextlib import suppress


class WakeupPipes:
    """A pipe for each of `count` processes; other processes do not wake a process beyond these."""

    def __init__(self, count: int) -> None:
        self.waiting = memoryview(mmap.mmap(-1, count))  # by place, whether a reader waits; all processes share it
        self._all = [WakeupPipe(self, place) for place in range(count)]
        self._free = list(reversed(self._all))

    def take(self) -> WakeupPipe:
        """Return a free pipe, or a private one if none is free. Call this only in the parent process."""
        return self._free.pop() if self._free else WakeupPipe(self, None)

    def release(self, wakeup_pipe: WakeupPipe) -> None:
        """Make the pipe of a process that has ended free again."""
        if wakeup_pipe.place is not None:
            self.waiting[wakeup_pipe.place] = 0
            self._free.append(wakeup_pipe)

    def wake_others(self, own: WakeupPipe) -> None:
        """Wake the processes in which readers wait, except the owner of this pipe."""
        for place, waits in enumerate(self.waiting):
            if waits and place != own.place:
                self._all[place].wake()


class WakeupPipe:
    """A pipe by which any thread of any process wakes the one thread that waits. Several writes wake it once."""

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
        """Return whether other processes can write to this pipe."""
        return self.place is not None

    def wanted(self, wanted: bool) -> None:
        """Set whether other processes write to this pipe."""
        if self._wakeup_pipes is not None and self.place is not None:
            self._wakeup_pipes.waiting[self.place] = wanted

    def wake(self) -> None:
        """Wake the thread that waits. This takes no lock, so a signal handler may call it."""
        with suppress(BlockingIOError):  # a full pipe wakes the reader anyway
            os.write(self._write_end, b"!")

    def wake_others(self) -> None:
        """Wake the other processes in which readers wait."""
        if self._wakeup_pipes is not None:
            self._wakeup_pipes.wake_others(self)

    def wait(self, seconds: float) -> bool:
        """Return whether a wake-up arrived since the last call, or arrives within `seconds`."""
        if not self._poll.poll(seconds * 1000):
            return False
        with suppress(BlockingIOError):
            os.read(self._read_end, 65_536)
        return True

    def __del__(self) -> None:
        """Close the pipe once no caller refers to it.

        Closing it earlier would let a later `wake` write to another file that got the same descriptor.
        """
        os.close(self._read_end)
        os.close(self._write_end)
