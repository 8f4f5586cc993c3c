"""PostgreSQL, FOR UPDATE SKIP LOCKED: a transaction deletes a message, and its commit is the ack; psycopg."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from benchmarks.queues.peer import TIMEOUT, Peer, Server, in_batches, program, versions
from benchmarks.queues.process import free_port, output, running

USER = "postgres"  # PostgreSQL refuses to run as root
SETTINGS = {"fsync": "on", "synchronous_commit": "on", "unix_socket_directories": "", "shared_buffers": "256MB"}
POLL = 0.001  # seconds between two attempts of a reader

SCHEMA = "CREATE TABLE messages (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)"
SEND = "INSERT INTO messages (text) VALUES (%s)"
SEND_ALL = "INSERT INTO messages (text) SELECT unnest(%s::text[])"
TAKE = """
    DELETE FROM messages
    WHERE id = ANY(ARRAY(SELECT id FROM messages ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED))
    RETURNING id, text
"""


def _version() -> str:
    return f"PostgreSQL {output(_program('postgres'), '--version').split()[2]}, {versions('psycopg')}"


def _program(name: str) -> str:
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    return program(name, "postgresql", *map(str, reversed(newest)))


@contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    port, data = free_port(), folder / "data"
    data.mkdir()
    user = None
    if os.geteuid() == 0:
        user = USER
        folder.parent.chmod(0o755)
        folder.chmod(0o755)
        shutil.chown(data, USER)
    output(_program("initdb"), "-D", str(data), "-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale", user=user)
    settings = SETTINGS | {"port": str(port), "listen_addresses": "127.0.0.1"}
    command = [_program("postgres"), "-D", str(data)]
    command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    address = f"postgresql://{USER}@127.0.0.1:{port}/postgres"
    with running(command, folder, port, user=user) as pid:
        _create(address)
        yield Server(address, pid)


def _create(address: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            with psycopg.connect(address) as connection:
                connection.execute(SCHEMA)
            return
        except psycopg.OperationalError:  # it accepts connections before it can serve them
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class _Client:
    def __init__(self, address: str) -> None:
        self._writer = psycopg.connect(address, autocommit=True)
        self._reader = psycopg.connect(address)

    def send(self, text: str) -> None:
        self._writer.execute(SEND, (text,))

    def take(self) -> str:
        return self._next(1)[0]

    def send_all(self, batches: Iterable[list[str]]) -> None:
        for batch in batches:
            self._writer.execute(SEND_ALL, (batch,))

    def take_all(self, count: int) -> Iterator[list[str]]:
        yield from in_batches(self._next, count)
        self._reader.commit()

    def close(self) -> None:
        self._reader.commit()
        self._reader.close()
        self._writer.close()

    def _next(self, most: int) -> list[str]:
        deadline = time.monotonic() + TIMEOUT
        while True:
            self._reader.commit()  # the ack of the messages taken before
            if rows := self._reader.execute(TAKE, (most,)).fetchall():
                return [text for _, text in sorted(rows)]
            if time.monotonic() > deadline:
                raise TimeoutError("no message")
            time.sleep(POLL)


PEER = Peer(name="PostgreSQL", version=_version, serve=_serve, connect=_Client)
