"""Reaches the connections to SQLite that are opened meanwhile, by whatever part of the service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import apsw


@contextmanager
def on_each_connection(do: Callable[[apsw.Connection], object]) -> Iterator[None]:
    """Done to each that is opened in the block, before anything else, and in the thread that opens it."""

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
        except apsw.ThreadingViolationError:  # another thread uses it just now
            return True
        except apsw.ConnectionClosedError:
            return False

    return [connection for connection in connections if is_open(connection)]
