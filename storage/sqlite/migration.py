"""A SQLite file as the source and the target of a migration; storage/contents.py describes the protocol."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from heapq import merge
from itertools import starmap
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import apsw

from storage.column_batches import unpack_columns
from storage.contents import MovedDedup, MovedMessage, MovedMove, MovedQueue, MovedReply, Remembered
from storage.errors import StoreError, UnusableDatabase
from storage.model import STATES, Sent
from storage.sqlite import inspection, replies
from storage.sqlite.disk.committer import SEALED
from storage.sqlite.disk.file import DatabaseFile
from storage.sqlite.maintenance import sync
from storage.sqlite.transaction import ARRIVED, WriteTransaction

_TO_NAME = "CASE state " + " ".join(f"WHEN {number} THEN '{name}'" for number, name in enumerate(STATES)) + " END"
_TO_NUMBER = "CASE ?3 " + " ".join(f"WHEN '{name}' THEN {number}" for number, name in enumerate(STATES)) + " END"


class SqliteContents:
    fault: ClassVar[tuple[type[Exception], ...]] = (apsw.Error, OSError)

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._connection = file.connect()
        self._closed = False
        self._step = 0  # ms from the file's own times to the wall clock's

    def queues(self) -> list[MovedQueue]:
        rows = self._connection.execute(
            "SELECT name, version, settings, ready, leased, delayed, blocked, bytes, "
            "sent, received, acked, expired, dead_lettered, iif(used_at, used_at + ?1, 0), created_at + ?1, "
            "modified_at + ?1 FROM queues WHERE name IS NOT NULL ORDER BY name",
            (self._step,),
        )
        return [
            queue._replace(settings=json.dumps(json.loads(queue.settings), sort_keys=True))
            for queue in starmap(MovedQueue, rows)
        ]

    def messages(self, after: int) -> Iterator[MovedMessage]:
        return merge(self._single(after), self._packed(after), key=lambda message: message.id)

    def _single(self, after: int) -> Iterator[MovedMessage]:
        return starmap(
            MovedMessage,
            self._connection.execute(
                f"""
                SELECT m.id, q.name, {_TO_NAME}, m.priority, m.recipient, m.key, iif(m.due_at, m.due_at + ?1, 0),
                       m.token, m.receive_count, m.sent_at + ?1, {ARRIVED} + ?1,
                       CAST(ceil(1000 * (fields ->> 'ttl')) AS INTEGER), m.origin, m.deaths, m.fields, m.text,
                       m.first_received_at + ?1, m.holder
                  FROM messages AS m JOIN queues AS q ON q.id = m.queue_id
                 WHERE q.name IS NOT NULL AND m.id > ?2
                 ORDER BY m.id
                """,
                (self._step, after),
            ),
        )

    def _packed(self, after: int) -> Iterator[MovedMessage]:
        for (
            first,
            queue,
            state,
            due_at,
            token,
            count,
            sent_at,
            received_at,
            holder,
            texts,
            attributes,
        ) in self._connection.execute(
            f"""
            SELECT r.id, q.name, {_TO_NAME}, iif(r.due_at, r.due_at + ?1, 0), r.token, r.receive_count, r.sent_at + ?1,
                   r.first_received_at + ?1, r.holder, r.texts, r.attributes
              FROM runs AS r JOIN queues AS q ON q.id = r.queue_id
             WHERE q.name IS NOT NULL AND r.id + r.count > ?2 + 1
             ORDER BY r.id
            """,
            (self._step, after),
        ):
            for number, text, fields in unpack_columns(first, texts, attributes):
                if number > after:
                    yield MovedMessage(
                        number, queue, state, 0, "", None, due_at, token, count, sent_at, sent_at, None, None, None,
                        fields, text, received_at, holder,
                    )  # fmt: skip

    def dedups(self) -> Iterator[MovedDedup]:
        return starmap(
            MovedDedup,
            self._connection.execute(
                "SELECT name, dedup_id, key, message_id, forget_at + ? FROM dedup JOIN queues ON id = queue_id "
                "WHERE name IS NOT NULL ORDER BY name, dedup_id, key",
                (self._step,),
            ),
        )

    def replies(self) -> Iterator[MovedReply]:
        rows = self._connection.execute(
            "SELECT coalesce(name, ''), key, fingerprint, reply, forget_at + ? "
            "FROM replies LEFT JOIN queues ON id = queue_id "
            "WHERE name IS NOT NULL OR queue_id = 0 ORDER BY coalesce(name, ''), key",
            (self._step,),
        )
        work = WriteTransaction(self._connection, _StoppedClock(self._step))
        for queue, key, fingerprint, document, forget_at in rows:
            reply = json.loads(document)
            if isinstance(reply, dict):
                yield MovedReply(queue, key, fingerprint, *_from_document(work, reply), forget_at)

    def moves(self) -> Iterator[MovedMove]:
        return starmap(
            MovedMove,
            self._connection.execute(
                "SELECT name, task, destination, rate, started_at + ?, status, moved, to_move, failure, after, last "
                "FROM moves JOIN queues ON queues.id = queue_id WHERE name IS NOT NULL ORDER BY name, moves.id",
                (self._step,),
            ),
        )

    def identity(self) -> bytes:
        return inspection.identity(self._connection)

    def last_id(self) -> int:
        return self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'messages'").get or 0

    def close(self) -> None:
        """Close the file; do nothing if it is closed."""
        if not self._closed:
            self._closed = True
            self._connection.close()
            self._file.close()


class SqliteSource(SqliteContents):
    """A source sealed by triggers, which fail the next write of every process that has the file open."""

    def __init__(self, path: Path) -> None:
        """Open an existing file. Raises UnusableDatabase."""
        if not path.exists():
            raise UnusableDatabase(f"{path} does not exist")
        super().__init__(DatabaseFile(path))

    def move(self) -> str | None:
        with suppress(apsw.SQLError):  # no such table
            name: str = self._connection.execute("SELECT name FROM move").get
            return name
        return None

    def seal(self) -> str:
        with self._file.lock.held(), self._connection:
            self._connection.execute("CREATE TABLE IF NOT EXISTS move (name TEXT, step INTEGER, done INTEGER) STRICT")
            if not self._connection.execute("SELECT count(*) FROM move").get:
                # Store it: a clock set during an interruption must not make the two databases differ.
                moment = self._file.clock.now()
                step = self._file.clock.wall(moment) - moment
                self._connection.execute("INSERT INTO move VALUES (?, ?, 0)", (secrets.token_hex(8), step))
                for trigger, event in _seals(self._connection):
                    self._connection.execute(
                        f"CREATE TRIGGER {trigger} BEFORE {event} BEGIN SELECT raise(ABORT, '{SEALED}'); END"
                    )
            name: str
            name, self._step = self._connection.execute("SELECT name, step FROM move").get
        return name

    def unseal(self) -> None:
        with self._file.lock.held(), self._connection:
            if not self._connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'move'").get:
                return
            if self._connection.execute("SELECT done FROM move").get:
                raise StoreError("the messages were moved already, and may be in use at the target")
            for trigger, _ in _seals(self._connection):
                self._connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
            self._connection.execute("DROP TABLE move")

    def is_moved(self) -> bool:
        with suppress(apsw.SQLError):  # no such table
            return bool(self._connection.execute("SELECT done FROM move").get)
        return False

    def mark_moved(self) -> None:
        with self._file.lock.held(), self._connection:
            self._connection.execute("UPDATE move SET done = 1")


class SqliteTarget(SqliteContents):
    """A target written to a `.part` file, which gets its name when it is complete."""

    def __init__(self, path: Path) -> None:
        """Create or reopen the `.part` file. Raises UnusableDatabase."""
        if path.exists():
            raise UnusableDatabase(f"{path} already exists")
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        super().__init__(DatabaseFile(self._part))

    def move(self) -> str | None:
        with suppress(apsw.SQLError):  # no such table
            name: str = self._connection.execute("SELECT move FROM arriving").get
            return name
        if self._connection.execute("SELECT count(*) FROM queues").get:
            raise UnusableDatabase(f"{self._part} belongs to another program; delete it if you do not need it")
        return None

    def begin(self, move: str) -> int:
        with self._connection:
            self._connection.execute("CREATE TABLE IF NOT EXISTS arriving (move TEXT UNIQUE) STRICT")
            self._connection.execute("INSERT OR IGNORE INTO arriving VALUES (?)", (move,))
        return self._connection.execute("SELECT max(id) FROM messages").get or 0

    def add_queues(self, queues: Sequence[MovedQueue]) -> None:
        with self._connection:
            self._connection.executemany(
                "INSERT OR IGNORE INTO queues (name, version, settings, ready, leased, delayed, blocked, bytes, "
                "sent, received, acked, expired, dead_lettered, used_at, created_at, modified_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                queues,
            )

    def add_messages(self, messages: Sequence[MovedMessage]) -> None:
        with self._connection:
            self._connection.executemany(
                "INSERT INTO messages (id, queue_id, state, priority, recipient, key, due_at, token, receive_count, "
                "sent_at, arrived_at, expires_at, origin, deaths, fields, text, first_received_at, holder) "
                f"VALUES (?1, (SELECT id FROM queues WHERE name = ?2), {_TO_NUMBER}, ?4, ?5, ?6, ?7, ?8, ?9, "
                "?10, nullif(?11, ?10), iif(?13 IS NULL, ?11 + ?12, NULL), ?13, ?14, ?15, ?16, ?17, ?18)",
                messages,
            )

    def add_remembered(self, remembered: Remembered) -> None:
        with self._connection:
            self._connection.execute("DELETE FROM dedup; DELETE FROM replies; DELETE FROM moves")
            self._connection.execute("UPDATE identity SET bytes = ?", (remembered.identity,))
            self._connection.executemany(
                "INSERT INTO dedup (queue_id, dedup_id, key, message_id, forget_at) "
                "VALUES ((SELECT id FROM queues WHERE name = ?), ?, ?, ?, ?)",
                remembered.dedups,
            )
            self._connection.executemany(
                "INSERT INTO moves (queue_id, task, destination, rate, started_at, status, moved, to_move, failure, "
                "after, last) VALUES ((SELECT id FROM queues WHERE name = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                remembered.moves,
            )
            self._connection.executemany(
                "INSERT INTO replies (queue_id, key, fingerprint, reply, forget_at) "
                "VALUES (coalesce((SELECT id FROM queues WHERE name = ?), 0), ?, ?, ?, ?)",
                (
                    (reply.queue, reply.key, reply.fingerprint, json.dumps(_to_document(reply)), reply.forget_at)
                    for reply in remembered.replies
                ),
            )
            self._connection.execute("DELETE FROM sqlite_sequence WHERE name = 'messages'")
            self._connection.execute(
                "INSERT INTO sqlite_sequence (name, seq) VALUES ('messages', ?)", (remembered.last_id,)
            )

    def open(self) -> None:
        self._connection.pragma("journal_mode", "delete")  # moves everything into the file and deletes the log
        self.close()
        os.link(self._part, self._path)  # unlike a rename, does not replace a new file
        self._part.unlink()
        Path(f"{self._part}-lock").unlink()
        sync(self._path.parent)
        # Last: after an interruption `move` must still find this table.
        file = DatabaseFile(self._path)
        with closing(file), closing(file.connect()) as connection:
            connection.execute("DROP TABLE arriving")


class _StoppedClock(NamedTuple):
    """A stopped Clock, `step` ms behind the wall clock."""

    step: int

    def now(self) -> int:
        return 0

    def wall(self, moment: int) -> int:
        return moment + self.step


def _from_document(work: WriteTransaction, reply: dict[str, Any]) -> tuple[list[int] | None, str | None]:
    """Return the ids and messages of a stored reply; leased messages as they are now."""
    ids = replies.sent(reply).ids if "ids" in reply else None
    if "leased" not in reply and "messages" not in reply:
        return ids, None
    found = replies.messages(work, reply)
    return ids, json.dumps(None if found is None else [message[:8] for message in found])


def _to_document(reply: MovedReply) -> dict[str, Any]:
    document = {} if reply.ids is None else replies.of_sent(Sent(reply.ids, []))
    return document if reply.messages is None else document | {"messages": json.loads(reply.messages)}


def _seals(connection: apsw.Connection) -> Iterator[tuple[str, str]]:
    """Yield the name and event of each trigger: every change of every table.

    The table `clock` has only a trigger for the update that checks readiness. The first process that opens the file
    after a boot must still insert a row.
    """
    for (table,) in connection.execute(
        "SELECT name FROM sqlite_schema "
        "WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT IN ('clock', 'move')"
    ).fetchall():
        for event in ("INSERT", "UPDATE", "DELETE"):
            yield f"sealed_{table}_{event.lower()}", f"{event} ON {table}"
    yield "sealed_clock", "UPDATE ON clock"
