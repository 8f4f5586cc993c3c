"""Checking, creating and upgrading the schema; a lock lets one of several starting processes do it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import psycopg

from storage.errors import UnusableDatabase
from storage.postgres.pool import connection_string

SCHEMA_VERSION = 5
OLDEST_SERVER = 13  # tested from 15 on; 13 was the oldest supported release
_FUNCTIONS = ("changes", "expiry", "sending", "receiving", "verbs", "queues")
LOCK = 0x71756575  # "queu": held while the schema is checked and created

# Settings that the functions rely on; a database or a role may override them.
_NEEDED = {
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
}
_SETTINGS = ["server_encoding", "fsync", "synchronous_commit", *_NEEDED]

_log = logging.getLogger(__name__)


def prepare(url: str, *, create_it: bool = True) -> str:
    """Create or upgrade the schema if needed; return the connection string. Raises UnusableDatabase."""
    try:
        connection_info = connection_string(url)
        with psycopg.connect(connection_info, prepare_threshold=None) as connection:
            if check_server(connection)["fsync"] == "off":
                _log.warning("the PostgreSQL server runs with fsync=off: a crash of its machine can lose all data")
            connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})".encode())
            found = _version(connection)
            if found is None and not create_it:
                raise UnusableDatabase("the database holds no queues")
            if found is None:
                create(connection)
            elif found > SCHEMA_VERSION:
                raise UnusableDatabase(f"the schema has version {found}; this program knows up to {SCHEMA_VERSION}")
            elif found < SCHEMA_VERSION:
                upgrades = [f"upgrade_{version}" for version in range(found + 1, SCHEMA_VERSION + 1)]
                _execute(connection, "drop_functions", *upgrades, *_FUNCTIONS)
    except psycopg.Error as fault:
        raise UnusableDatabase(f"the PostgreSQL database cannot be used: {_first_line(fault)}") from fault
    return connection_info


def create(connection: psycopg.Connection[Any]) -> None:
    """Create the schema in the current transaction."""
    _execute(connection, "tables", *_FUNCTIONS)


def check_server(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Return the server's settings. Raises UnusableDatabase if they break the service's guarantees."""
    if connection.info.server_version < OLDEST_SERVER * 10_000:
        raise UnusableDatabase(f"the service needs PostgreSQL {OLDEST_SERVER} or newer")
    settings: dict[str, str] = dict(
        connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", [_SETTINGS]).fetchall()
    )
    if settings["server_encoding"] != "UTF8":
        raise UnusableDatabase(f"the database's encoding is {settings['server_encoding']}; it must be UTF8")
    if settings["synchronous_commit"] == "off":
        raise UnusableDatabase("synchronous_commit is off: acknowledged writes would not be on disk")
    for name, needed in _NEEDED.items():  # set for the server, the database or the role
        if settings[name] != needed:
            raise UnusableDatabase(f"{name} is {settings[name]}; it must be {needed}")
    return settings


def _execute(connection: psycopg.Connection[Any], *files: str) -> None:
    for name in files:
        connection.execute((Path(__file__).parent / "sql" / f"{name}.sql").read_bytes())


def _version(connection: psycopg.Connection[Any]) -> int | None:
    """Return the schema's version, None if there is no schema."""
    there = connection.execute("SELECT to_regclass('queue_service.version') IS NOT NULL").fetchone()
    if there != (True,):
        return None
    row = connection.execute("SELECT version FROM queue_service.version").fetchone()
    if row is None or not isinstance(row[0], int):
        raise UnusableDatabase("the schema queue_service belongs to another program")
    return row[0]


def _first_line(fault: psycopg.Error) -> str:
    return (fault.diag.message_primary or str(fault)).splitlines()[0]
