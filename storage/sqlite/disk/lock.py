"""The lock between processes that makes writes fair; SQLite's own busy wait polls and is unfair."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue


class FileLock:
    """A flock with a deadline. One caller of a process holds it at a time.

    flock has no deadline, and polling would lose to processes in the kernel's queue. So if the lock is not free, a
    thread waits in that queue. If the caller gives up, the thread keeps waiting, for the next caller.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or create it. Raises OSError."""
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._changed = threading.Condition()
        self._waits: SimpleQueue[bool] = SimpleQueue()  # what the thread does next: wait, or close the file
        self._has_thread = False
        self._queueing = False  # the thread waits for the lock
        self._wanted = False
        self._ready: Callable[[], None] | None = None
        self._held = False  # by this process …
        self._in_use = False  # … and by a `held` block

    @contextmanager
    def held(self, deadline: float | None = None) -> Iterator[bool]:
        """Hold the lock for the block; yield False if the deadline (monotonic; None: no limit) passes first."""
        held = self._acquire(deadline)
        try:
            yield held
        finally:
            if held:
                with self._changed:
                    self._in_use = False
                    self._release()

    def reserve(self, ready: Callable[[], None]) -> bool:
        """Take the lock for the next `held` and return True if it is free; if not, do so later and call `ready`."""
        with self._changed:
            self._ready = None if self._held or self._take_or_queue() else ready
            return self._held

    def cancel(self) -> None:
        """Free a reserved lock, and do not reserve it later."""
        with self._changed:
            self._ready = None
            if self._held and not (self._in_use or self._wanted):
                self._release()

    def close(self) -> None:
        if self._has_thread:
            self._waits.put(False)
        else:
            os.close(self.descriptor)

    def _acquire(self, deadline: float | None) -> bool:
        with self._changed:
            if not (self._held or self._take_or_queue()):
                self._wanted = True
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                self._changed.wait_for(lambda: self._held, left)
                self._wanted = False
            self._in_use = self._held
            return self._held

    def _release(self) -> None:
        self._held = False
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def _take_or_queue(self) -> bool:
        if not self._queueing:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._held = True
            except BlockingIOError:
                self._queueing = True
                self._waits.put(True)
                if not self._has_thread:
                    self._has_thread = True
                    threading.Thread(target=self._wait_in_queue, name="queue-lock", daemon=True).start()
        return self._held

    def _wait_in_queue(self) -> None:
        while self._waits.get():
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
            with self._changed:
                self._queueing = False
                ready, self._ready = self._ready, None
                if self._wanted or ready is not None:
                    self._held = True
                    self._changed.notify_all()
                else:
                    fcntl.flock(self.descriptor, fcntl.LOCK_UN)
            if ready is not None:
                ready()
        os.close(self.descriptor)
