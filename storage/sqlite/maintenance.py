"""The operator's commands for a SQLite file: info, check, backup, vacuum."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw

from storage.errors import Unsound, UnusableDatabase
from storage.model import STATES
from storage.sqlite.disk import file as sqlite_file
from storage.sqlite.disk.file import DatabaseFile


def info(path: Path) -> str:
    """Return the contents of the database, one fact a line."""
    with _opened(path) as connection:
        page, pages, free = map(connection.pragma, ("page_size", "page_count", "freelist_count"))
        lines = [
            f"file      {path} (schema version {connection.pragma('user_version')})",
            f"size      {pages * page:,} bytes, of which {free * page:,} free",
            f"log       {_log_size(path):,} bytes",
            f"sqlite    {apsw.sqlite_lib_version()}",
        ]
        if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'move'").get:
            lines.append("move      this database is sealed: its messages are being moved to another one, or were")
        for name, size_in_bytes, *counts in connection.execute(
            f"SELECT name, bytes, {', '.join(STATES)} FROM queues WHERE name IS NOT NULL ORDER BY name"
        ):
            states = ", ".join(f"{count:,} {state}" for state, count in zip(STATES, counts, strict=True))
            lines.append(f"queue     {name}: {states}; {size_in_bytes:,} bytes")
    return "\n".join(lines)


def check(path: Path) -> str:
    """Read the whole file and check it; return a summary. Raises Unsound."""
    with _opened(path) as connection, connection:  # one snapshot
        if (version := connection.pragma("user_version")) != sqlite_file.SCHEMA_VERSION:
            raise UnusableDatabase(
                f"{path} has schema version {version}, but this check needs {sqlite_file.SCHEMA_VERSION}: "
                "use the check of the release that serves it, or start this release's service first"
            )
        faults = [str(row[0]) for row in connection.execute("PRAGMA integrity_check").fetchall() if row[0] != "ok"]
        faults += [
            f"queue '{name}' counts {stored} {what} but has {actual}"
            for name, what, stored, actual in connection.execute(_RECOUNT).fetchall()
        ]
        strays = connection.execute(
            f"SELECT coalesce(sum(count), 0) FROM ({_MESSAGES}) WHERE queue_id NOT IN (SELECT id FROM queues)"
        ).get
        if strays:
            faults.append(f"{strays} messages are in no queue")
        if faults:
            raise Unsound("\n".join(faults))
        messages = connection.execute(f"SELECT coalesce(sum(count), 0) FROM ({_MESSAGES})").get
        queues = connection.execute("SELECT count(*) FROM queues WHERE name IS NOT NULL").get
    return f"ok: {messages:,} messages in {queues:,} queues"


def backup(path: Path, target: Path) -> str:
    """Copy one snapshot to `target`, synced to disk, while the service continues; return a summary.

    Raises UnusableDatabase if `target` exists or cannot be written.
    """
    if target.exists():
        raise UnusableDatabase(f"{target} already exists")
    part = target.with_name(f"{target.name}.part")
    with _opened(path) as connection:
        try:
            part.unlink(missing_ok=True)
            # Not the backup API: it restarts after each write of another process, so under load it may never end.
            connection.execute("VACUUM INTO ?", (str(part),))
            sync(part)
            os.link(part, target)  # unlike a rename, does not replace a new file
        except (OSError, apsw.Error) as fault:
            raise UnusableDatabase(f"the backup failed: {_reason(fault)}") from fault
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    sync(target.parent)
    return f"{target}: {target.stat().st_size:,} bytes"


def vacuum(path: Path) -> str:
    """Remove all free pages from the file; return a summary. Meanwhile writers wait, and fail as Busy after 5 s."""
    with _opened(path) as connection:
        before = path.stat().st_size
        connection.pragma("temp_store", 1)  # in a file: the copy may be larger than memory
        connection.pragma("auto_vacuum", "incremental")  # so that upkeep can shrink an older file too
        connection.execute("VACUUM")
        with suppress(apsw.BusyError):  # a reader needs the log: the service truncates it later
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    return f"{path}: from {before:,} to {path.stat().st_size:,} bytes"


def sync(path: Path) -> None:
    """Sync a file, or the names in a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_MESSAGES = "SELECT queue_id, 1 AS count FROM messages UNION ALL SELECT queue_id, count FROM runs"
# The stored counts of each queue beside the counted messages; rows only for differences.
_RECOUNT = " UNION ALL ".join(
    f"""
    SELECT name, '{what}', {what}, coalesce(real, 0)
      FROM queues
      LEFT JOIN (SELECT queue_id, sum(part) AS real
                   FROM (SELECT queue_id, {part} AS part FROM messages WHERE {which}
                          UNION ALL
                         SELECT queue_id, {run} FROM runs WHERE {which})
                  GROUP BY queue_id) ON queue_id = id
     WHERE name IS NOT NULL AND {what} <> coalesce(real, 0)
    """
    for what, part, run, which in [
        *((state, "1", "count", f"state = {number}") for number, state in enumerate(STATES)),
        ("bytes", "octet_length(text) + coalesce(octet_length(fields), 0)", "bytes", "TRUE"),
    ]
)


@contextmanager
def _opened(path: Path) -> Iterator[apsw.Connection]:
    """Connect to an existing file; never create one. Raises UnusableDatabase."""
    try:
        if not path.exists():
            raise UnusableDatabase(f"{path} does not exist")
        if path.stat().st_size == 0:
            raise UnusableDatabase(f"{path} is empty")
        file = DatabaseFile(path, migrate=False)
        try:
            connection = file.connect()
            try:
                yield connection
            finally:
                connection.close()
        except apsw.IOError:
            file.distrust_log()
            raise
        finally:
            file.close()
    except (OSError, apsw.Error) as fault:
        raise UnusableDatabase(f"{path}: {_reason(fault)}") from fault


def _reason(fault: OSError | apsw.Error) -> str:
    return (fault.strerror or str(fault)) if isinstance(fault, OSError) else str(fault)


def _log_size(path: Path) -> int:
    log = Path(f"{path}-wal")
    return log.stat().st_size if log.exists() else 0
