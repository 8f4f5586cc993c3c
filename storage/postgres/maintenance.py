"""The operator's commands for a PostgreSQL database: info and check. PostgreSQL's own tools do the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import IsolationLevel

from storage.errors import Unsound, UnusableDatabase
from storage.model import STATES
from storage.postgres.schema import prepare


def info(url: str) -> str:
    """Return the contents of the database, one fact a line."""
    with _opened(url) as connection:
        ((server, checksums, size),) = connection.execute(
            """
            SELECT current_setting('server_version'), current_setting('data_checksums'),
                   (SELECT sum(pg_total_relation_size(oid)) FROM pg_class
                     WHERE relnamespace = 'queue_service'::regnamespace AND relkind = 'r')::bigint
            """
        ).fetchall()
        ((schema,),) = connection.execute("SELECT version FROM queue_service.version").fetchall()
        at = connection.info
        lines = [
            f"database  {at.dbname} on {at.host}:{at.port} (schema version {schema})",
            f"size      {size:,} bytes, including indexes and dead rows",
            f"postgres  {server}, data checksums {checksums}",
        ]
        for name, *counts, size_in_bytes in connection.execute(
            f"""
            SELECT name, {", ".join(f"coalesce(sum({state}), 0)::bigint" for state in STATES)},
                   coalesce(sum(bytes), 0)::bigint
              FROM queue_service.queues LEFT JOIN queue_service.counts ON queue_id = id
             WHERE name IS NOT NULL GROUP BY name ORDER BY name
            """.encode()
        ):
            states = ", ".join(f"{count:,} {state}" for state, count in zip(STATES, counts, strict=True))
            lines.append(f"queue     {name}: {states}; {size_in_bytes:,} bytes")
    return "\n".join(lines)


def check(url: str) -> str:
    """Read all messages and compare them with the counts; return a summary. Raises Unsound."""
    with _opened(url) as connection:
        faults = [
            f"queue '{name}' counts {stored} {what} but has {actual}"
            for name, what, stored, actual in connection.execute(_RECOUNT.encode()).fetchall()
        ]
        faults += [
            f"queue '{name}' has a key with {leased} leased and {free} free messages"
            for name, leased, free in connection.execute(_KEYS).fetchall()
        ]
        ((strays,),) = connection.execute(
            "SELECT count(*) FROM queue_service.messages "
            "WHERE NOT EXISTS (SELECT FROM queue_service.queues WHERE id = queue_id)"
        ).fetchall()
        if strays:
            faults.append(f"{strays} messages are in no queue")
        if faults:
            raise Unsound("\n".join(faults))
        ((messages, queues),) = connection.execute(
            "SELECT (SELECT count(*) FROM queue_service.messages), "
            "(SELECT count(*) FROM queue_service.queues WHERE name IS NOT NULL)"
        ).fetchall()
    return f"ok: {messages:,} messages in {queues:,} queues"


def backup(url: str, target: Path) -> str:
    """Raise UnusableDatabase, which names PostgreSQL's own tool."""
    raise UnusableDatabase("back up PostgreSQL with pg_dump --schema=queue_service, or back up the whole server")


def vacuum(url: str) -> str:
    """Raise UnusableDatabase, which names PostgreSQL's own tool."""
    raise UnusableDatabase("PostgreSQL vacuums by itself (autovacuum); to return space to the disk, run VACUUM FULL")


# The stored counts of each queue beside the counted messages; rows only for differences.
_RECOUNT = f"""
    WITH counted AS (
        SELECT queue_id, {", ".join(f"sum({what})::bigint AS {what}" for what in (*STATES, "bytes"))}
          FROM queue_service.counts GROUP BY queue_id
    ), real AS (
        SELECT queue_id, {", ".join(f"count(*) FILTER (WHERE state = {n}) AS {s}" for n, s in enumerate(STATES))},
               sum(octet_length(text) + coalesce(octet_length(fields), 0))::bigint AS bytes
          FROM queue_service.messages GROUP BY queue_id
    )
    SELECT name, what, coalesce(stored, 0), coalesce(actual, 0)
      FROM queue_service.queues LEFT JOIN counted ON counted.queue_id = id LEFT JOIN real ON real.queue_id = id
     CROSS JOIN LATERAL (VALUES {", ".join(f"('{s}', counted.{s}, real.{s})" for s in (*STATES, "bytes"))})
                     AS compared (what, stored, actual)
     WHERE name IS NOT NULL AND coalesce(stored, 0) <> coalesce(actual, 0)
"""

# Keys with more than one deliverable message, and unless key_lock is "head" with a deliverable one beside a leased one,
# or with two readers.
_KEYS = """
    SELECT name, count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state IN (0, 2))
      FROM queue_service.messages JOIN queue_service.queues ON queues.id = queue_id
     WHERE key IS NOT NULL AND state <> 3 AND name IS NOT NULL
     GROUP BY name, settings, key
    HAVING count(*) FILTER (WHERE state IN (0, 2)) > 1
        OR (settings ->> 'key_lock' IS DISTINCT FROM 'head' AND count(*) FILTER (WHERE state = 1) > 0
            AND (count(*) FILTER (WHERE state IN (0, 2)) > 0 OR count(DISTINCT token) FILTER (WHERE state = 1) > 1))
"""


@contextmanager
def _opened(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Connect to an existing service's database, read-only and in one snapshot. Raises UnusableDatabase."""
    try:
        with psycopg.connect(prepare(url, create_it=False)) as connection:
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            yield connection
    except psycopg.Error as fault:
        raise UnusableDatabase(f"cannot read the database: {str(fault).splitlines()[0]}") from fault
