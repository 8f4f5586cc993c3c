"""Durable queues: `open_store(url)` opens a Store, the protocol in storage/store.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage.contents import Source, Target
from storage.errors import UnusableDatabase
from storage.scheduling import Scheduler, Threads
from storage.store import Engine

__all__ = ["is_postgres", "location_of", "maintenance_for", "open_source", "open_store", "open_target", "path_of"]


def open_store(url: str, *, pollers: int = 32, scheduler: Scheduler = Threads()) -> Engine:
    """Open the store at `sqlite:///relative/path`, `sqlite:////absolute/path` or `postgresql://…`.

    At most `pollers` readers wait at once. A server that runs many requests in one thread passes its `scheduler`. Open
    the store in each process, after any fork. Raises UnusableDatabase with the reason.
    """
    if is_postgres(url):
        try:
            from storage.postgres.store import PostgresStore  # load an engine only when a URL names it
        except ModuleNotFoundError as fault:
            raise UnusableDatabase(f"PostgreSQL needs '{fault.name}', which is not installed") from fault
        return PostgresStore(url, pollers=pollers, scheduler=scheduler)
    path = path_of(url)
    from storage.sqlite.store import SqliteStore

    return SqliteStore(path, pollers=pollers, scheduler=scheduler)


def open_source(url: str) -> Source:
    """Open the database at this URL as the source of a migration. Raises UnusableDatabase."""
    if is_postgres(url):
        raise UnusableDatabase("cannot move from a PostgreSQL database, only to one")
    path = path_of(url)
    from storage.sqlite.migration import SqliteSource

    return SqliteSource(path)


def open_target(url: str) -> Target:
    """Open the database at this URL as the target of a migration. Raises UnusableDatabase."""
    if is_postgres(url):
        from storage.postgres.migration import PostgresTarget

        return PostgresTarget(url)
    path = path_of(url)
    from storage.sqlite.migration import SqliteTarget

    return SqliteTarget(path)


def maintenance_for(url: str) -> tuple[Any, Path | str]:
    """Return the module with info, check, backup and vacuum for this database, and the argument that they take."""
    if is_postgres(url):
        from storage.postgres import maintenance as postgres_maintenance

        return postgres_maintenance, url
    path = path_of(url)
    from storage.sqlite import maintenance as sqlite_maintenance

    return sqlite_maintenance, path


def location_of(url: str) -> str:
    """Return a file's absolute path, or a server and database without the password."""
    if not is_postgres(url):
        return str(path_of(url).resolve())
    # Not by urlsplit, which refuses several hosts. What precedes the last @ may be a password.
    return f"postgresql://{url.partition('://')[2].partition('?')[0].rpartition('@')[2]}"


def is_postgres(url: str) -> bool:
    """Return whether a URL names a PostgreSQL database."""
    return url.startswith(("postgresql://", "postgres://"))


def path_of(url: str) -> Path:
    """Return the path in a sqlite:/// URL. Raises UnusableDatabase."""
    scheme, _, path = url.partition("://")
    if scheme != "sqlite" or not path.startswith("/") or len(path) < 2:
        shown = f"{scheme}://…" if "://" in url else url  # what follows may hold a password
        raise UnusableDatabase(
            f"'{shown}' names no database; "
            "write sqlite:///file, sqlite:////absolute/file or postgresql://user@host/database"
        )
    return Path(path[1:])
