"""The lock between processes that makes writes fair; SQLite's own busy wait polls and is unfair."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FileLock:
    """A flock with a deadline.

    flock has no deadline, and polling would lose to processes in the kernel's queue. So if the lock is not free, a
    thread waits in that queue. If the caller gives up, the thread keeps waiting, for the next caller.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or create it. Raises OSError."""
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._changed = threading.Condition()
        self._queueing = False  # a thread waits for the lock
        self._wanted = False
        self._held = False
        self._closed = False

    @contextmanager
    def held(self, deadline: float | None = None) -> Iterator[bool]:
        """Hold the lock for the block; yield False if the deadline (monotonic; None: no limit) passes first.

        A deadline of 0 does not wait, and keeps no place in the kernel's queue.
        """
        held = self._acquire(deadline)
        try:
            yield held
        finally:
            if held:
                self._held = False
                fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            if not self._queueing:  # else that thread still uses and later closes it
                os.close(self.descriptor)

    def _acquire(self, deadline: float | None) -> bool:
        with self._changed:
            if not self._queueing:
                try:
                    fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                except BlockingIOError:
                    if deadline == 0:
                        return False
                    self._queueing = True
                    threading.Thread(target=self._wait_in_queue, name="queue-lock", daemon=True).start()
            if deadline == 0:
                return False
            self._wanted = True
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._changed.wait_for(lambda: self._held, left)
            self._wanted = False
            return self._held

    def _wait_in_queue(self) -> None:
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        with self._changed:
            self._queueing = False
            if self._wanted:
                self._held = True
                self._changed.notify_all()
                return
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
            if self._closed:
                os.close(self.descriptor)
