"""Access the connections to SQLite that any part of the service opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import apsw


@contextmanager
def on_each_connection(do: Callable[[apsw.Connection], object]) -> Iterator[None]:
    """Call `do` for each connection opened in the block, first and in the thread that opens it."""

    def hook(connection: apsw.Connection) -> None:
        do(connection)

    apsw.connection_hooks.append(hook)
    try:
        yield
    finally:
        apsw.connection_hooks.remove(hook)


def still_open(connections: list[apsw.Connection]) -> list[apsw.Connection]:
    def is_open(connection: apsw.Connection) -> bool:
        try:
            return connection.in_transaction is not None
        except apsw.ThreadingViolationError:  # another thread is using it
            return True
        except apsw.ConnectionClosedError:
            return False

    return [connection for connection in connections if is_open(connection)]
