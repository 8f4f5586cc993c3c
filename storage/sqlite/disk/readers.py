"""The connections of a process that only read the database file."""

from __future__ import annotations

import queue as threadsafe
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import apsw

from storage.sqlite.disk.committer import translate


class Readers:
    """A pool of connections: one for each thread that reads at the same time."""

    def __init__(self, connect: Callable[[], apsw.Connection], failed: Callable[[Exception], None]) -> None:
        """Create an empty pool; it calls `failed` when the disk fails a read."""
        self._connect = connect
        self._failed = failed
        self._idle: threadsafe.SimpleQueue[apsw.Connection] = threadsafe.SimpleQueue()

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get().close()

    @contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """Lend a connection for read-only statements; finish every cursor inside the block."""
        try:
            connection = self._idle.get_nowait()
        except threadsafe.Empty:
            connection = self._connect()
        try:
            yield connection
        except (apsw.IOError, apsw.CorruptError) as fault:
            self._failed(fault)
            raise translate(fault) from fault
        except apsw.BusyError as fault:
            raise translate(fault) from fault
        finally:
            self._idle.put(connection)
