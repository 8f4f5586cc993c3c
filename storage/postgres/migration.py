"""A PostgreSQL database as the target of a migration; storage/contents.py describes the protocol.

The migration fills a schema with another name, and renames it at the end. Until then a schema with a NULL version
occupies the service's name, so that a node that starts too early refuses to run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import psycopg

from storage.contents import MovedDedup, MovedMessage, MovedMove, MovedQueue, MovedReply, Remembered
from storage.errors import UnusableDatabase
from storage.model import STATES, Receipt
from storage.postgres.pool import connection_string
from storage.postgres.schema import LOCK, check_server, create

_DELIVERY = ("note", "ids", "duplicates", "queue", "id", "text", "fields", "deaths", "sent_at", "receive_count",
             "token", "leased_until", "first_received_at")  # fmt: skip
_FETCHED_ROWS = 2_000  # rows in one fetch


class PostgresTarget:
    fault: ClassVar[tuple[type[Exception], ...]] = (psycopg.Error,)

    def __init__(self, url: str) -> None:
        """Connect. Raises UnusableDatabase."""
        try:
            self._connection = psycopg.connect(connection_string(url), autocommit=True, prepare_threshold=None)
        except psycopg.Error as fault:
            raise UnusableDatabase(f"no connection to the database: {str(fault).splitlines()[0]}") from fault

    def move(self) -> str | None:
        """Implement Target.move. Raises UnusableDatabase also if no node could open the result."""
        check_server(self._connection)
        if not self._value("SELECT has_database_privilege(current_database(), 'CREATE')"):
            raise UnusableDatabase("the role has no right to CREATE in the database")
        if self._exists("queue_service") and not self._is_placeholder():
            raise UnusableDatabase("the database already has a queue service (the schema queue_service)")
        if not self._exists("queue_service_arriving"):
            return None
        if not self._value("SELECT to_regclass('queue_service_arriving.arriving') IS NOT NULL"):
            raise UnusableDatabase("another program owns the schema queue_service_arriving; drop it if unneeded")
        move: str = self._value("SELECT move FROM queue_service_arriving.arriving")
        return move

    def begin(self, move: str) -> int:
        with self._transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))  # a node may be creating its schema
            if not self._exists("queue_service_arriving"):
                create(self._connection)
                self._connection.execute("ALTER SCHEMA queue_service RENAME TO queue_service_arriving")
                self._connection.execute("CREATE TABLE queue_service_arriving.arriving (move text NOT NULL)")
                self._connection.execute("INSERT INTO queue_service_arriving.arriving VALUES (%s)", (move,))
            if not self._exists("queue_service"):
                self._connection.execute("CREATE SCHEMA queue_service CREATE TABLE version (version integer)")
                self._connection.execute("INSERT INTO queue_service.version VALUES (NULL)")
        last: int = self._value(
            "SELECT coalesce(max((SELECT max(id) FROM messages WHERE queue_id = queues.id)), 0) FROM queues"
        )
        return last

    def add_queues(self, queues: Sequence[MovedQueue]) -> None:
        with self._transaction():
            for name, version, settings, *counts, used_at, created_at, modified_at in queues:
                self._connection.execute(
                    "INSERT INTO queues (name, version, settings, used_at, created_at, modified_at) "
                    "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (name) DO NOTHING",
                    (name, version, settings, used_at, created_at, modified_at),
                )
                self._connection.execute(
                    "INSERT INTO counts (queue_id, slot, ready, leased, delayed, blocked, bytes, "
                    "sent, received, acked, expired, dead_lettered) "
                    "SELECT id, 0, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s FROM queues WHERE name = %s "
                    "ON CONFLICT (queue_id, slot) DO NOTHING",
                    (*counts, name),
                )

    def add_messages(self, messages: Sequence[MovedMessage]) -> None:
        queues = self._queue_ids()
        with (
            self._transaction(),
            self._connection.cursor().copy(
                "COPY messages (queue_id, id, sent_at, arrived_at, due_at, expires_at, ttl, token, receive_count, "
                "state, priority, recipient, key, origin, deaths, fields, text, first_received_at, holder) FROM STDIN"
            ) as copy,
        ):
            for m in messages:
                copy.write_row((
                    queues[m.queue], m.id, m.sent_at, m.arrived_at, m.due_at,
                    None if m.ttl is None or m.deaths is not None else m.arrived_at + m.ttl, m.ttl, m.token,
                    m.receive_count, STATES.index(m.state), m.priority, m.recipient.encode(),
                    None if m.key is None else m.key.encode(), m.origin, m.deaths, m.fields, m.text.encode(),
                    m.first_received_at, m.holder,
                ))  # fmt: skip

    def add_remembered(self, remembered: Remembered) -> None:
        queues = self._queue_ids() | {"": 0}
        with self._transaction(), self._connection.cursor() as cursor:
            cursor.execute("TRUNCATE dedup, replies, graves, moves")
            cursor.execute("UPDATE identity SET bytes = %s", (remembered.identity,))
            with cursor.copy("COPY dedup (queue_id, dedup_id, key, message_id, forget_at) FROM STDIN") as copy:
                for queue, dedup_id, key, *rest in remembered.dedups:
                    copy.write_row((queues[queue], dedup_id.encode(), key.encode(), *rest))
            for move in remembered.moves:
                state = {"after": move.after, "last": move.last, "count": move.moved, "done": False}
                cursor.execute(
                    "INSERT INTO moves (queue_id, task, destination, rate, started_at, status, moved, to_move, "
                    "failure, state) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                    (queues[move.queue], *move[1:9], json.dumps(state)),
                )
            with cursor.copy("COPY replies (queue_id, key, fingerprint, reply, forget_at) FROM STDIN") as copy:
                for reply in remembered.replies:
                    document = json.dumps(_to_document(reply))
                    copy.write_row((queues[reply.queue], reply.key, reply.fingerprint, document, reply.forget_at))
            cursor.execute("UPDATE queues SET keyed = EXISTS (SELECT FROM messages WHERE queue_id = queues.id "
                           "AND key IS NOT NULL)")  # fmt: skip
            cursor.execute("INSERT INTO graves (origin, queue_id) "
                           "SELECT DISTINCT origin, queue_id FROM messages WHERE origin IS NOT NULL")  # fmt: skip
            cursor.execute(
                "SELECT setval('message_ids', greatest(%(last)s, 1), %(last)s > 0)", {"last": remembered.last_id}
            )
            cursor.execute("ANALYZE")

    def open(self) -> None:
        with self._transaction():
            self._connection.execute("DROP TABLE arriving, queue_service.version")
            self._connection.execute("DROP SCHEMA queue_service")
            self._connection.execute("ALTER SCHEMA queue_service_arriving RENAME TO queue_service")

    def queues(self) -> list[MovedQueue]:
        with self._transaction():
            rows = self._connection.execute(
                """
                SELECT name, version, settings, sum(ready)::bigint, sum(leased)::bigint, sum(delayed)::bigint,
                       sum(blocked)::bigint, sum(bytes)::bigint, sum(sent)::bigint, sum(received)::bigint,
                       sum(acked)::bigint, sum(expired)::bigint, sum(dead_lettered)::bigint, used_at,
                       created_at, modified_at
                  FROM queues JOIN counts ON queue_id = queues.id
                 GROUP BY queues.id ORDER BY name
                """
            ).fetchall()
        return [MovedQueue(row[0], row[1], json.dumps(row[2], sort_keys=True), *row[3:]) for row in rows]

    def messages(self, after: int) -> Iterator[MovedMessage]:
        for name, queue in self._queue_ids().items():
            for row in self._rows(
                "SELECT id, state, priority, recipient, key, due_at, token, receive_count, sent_at, arrived_at, ttl, "
                "origin, deaths, fields, text, first_received_at, holder FROM messages WHERE queue_id = %s AND id > %s "
                "ORDER BY id",
                (queue, after),
            ):
                number, state, priority, recipient, key, *rest, text, received_at, holder = row
                head = (number, name, STATES[state], priority, recipient.decode(), key and key.decode())
                yield MovedMessage._make((*head, *rest, text.decode(), received_at, holder))

    def dedups(self) -> Iterator[MovedDedup]:
        for name, dedup_id, key, *rest in self._rows(
            "SELECT name, dedup_id, key, message_id, forget_at FROM dedup JOIN queues ON id = queue_id "
            "ORDER BY name, dedup_id, key",
            (),
        ):
            yield MovedDedup(name, dedup_id.decode(), key.decode(), *rest)

    def replies(self) -> Iterator[MovedReply]:
        for name, key, fingerprint, reply, forget_at in self._rows(
            "SELECT coalesce(name, ''), key, fingerprint, reply, forget_at FROM replies "
            'LEFT JOIN queues ON id = queue_id ORDER BY coalesce(name, \'\') COLLATE "C", key COLLATE "C"',
            (),
        ):
            yield MovedReply(name, key, fingerprint, *_from_document(reply), forget_at)

    def moves(self) -> Iterator[MovedMove]:
        for row in self._rows(
            "SELECT name, task, destination, rate, started_at, status, moved, to_move, failure, "
            "(state ->> 'after')::bigint, (state ->> 'last')::bigint "
            "FROM moves JOIN queues ON queues.id = queue_id ORDER BY name, moves.id",
            (),
        ):
            yield MovedMove._make(row)

    def identity(self) -> bytes:
        found: bytes = self._value("SELECT bytes FROM identity")
        return found

    def last_id(self) -> int:
        last: int = self._value("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM message_ids")
        return last

    def close(self) -> None:
        self._connection.close()

    def _exists(self, schema: str) -> bool:
        return bool(self._value("SELECT count(*) FROM pg_namespace WHERE nspname = %s", schema))

    def _is_placeholder(self) -> bool:
        """Return whether the service's schema is only a placeholder."""
        if not self._value("SELECT to_regclass('queue_service.version') IS NOT NULL"):
            return False
        return bool(self._value("SELECT count(*) = 1 AND count(version) = 0 FROM queue_service.version"))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Set the search path inside the transaction only, because a pooler lends the session to other clients."""
        with self._connection.transaction():
            self._connection.execute("SET LOCAL search_path = queue_service_arriving")
            yield

    def _queue_ids(self) -> dict[str, int]:
        with self._transaction():
            return dict(self._connection.execute("SELECT name, id FROM queues").fetchall())

    def _value(self, sql: str, *values: Any) -> Any:
        with self._transaction():
            row = self._connection.execute(sql, values).fetchone()
        assert row is not None
        return row[0]

    def _rows(self, sql: str, values: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """Yield the rows, fetched in pieces, because they may not fit into memory."""
        with self._transaction(), self._connection.cursor(name="moving") as cursor:
            cursor.itersize = _FETCHED_ROWS
            yield from cursor.execute(sql, values)


def _to_document(reply: MovedReply) -> Any:
    """Convert a reply to the form of sql/verbs.sql: a send's result, or deliveries, the first with the sent ids."""
    if reply.messages is None:
        return {"ids": reply.ids, "duplicates": []}
    rows: list[Any] = []
    if reply.ids is not None:
        rows.append(dict.fromkeys(_DELIVERY) | {"ids": reply.ids, "duplicates": []})
    found = json.loads(reply.messages)
    if found is None:
        return [*rows, dict.fromkeys(_DELIVERY) | {"note": "late"}]
    for id, queue, text, fields, sent_at, count, receipt, leased_until in found:
        token = None if receipt is None else Receipt.parse_one(receipt).token
        values = (None, None, None, queue, id, f"\\x{text.encode().hex()}", fields, None, sent_at, count, token,
                  leased_until, None)  # fmt: skip
        rows.append(dict(zip(_DELIVERY, values, strict=True)))
    return rows


def _from_document(reply: Any) -> tuple[list[int] | None, str | None]:
    """Return the ids and the messages, as in MovedReply, of a stored reply."""
    if isinstance(reply, dict):
        return reply["ids"], None
    ids = reply.pop(0)["ids"] if reply and reply[0]["ids"] is not None else None
    if reply and reply[0]["note"] == "late":
        return ids, "null"
    return ids, json.dumps([
        [
            row["id"], row["queue"], bytes.fromhex(row["text"][2:]).decode(), row["fields"], row["sent_at"],
            row["receive_count"], row["token"] and str(Receipt(row["queue"], row["id"], row["token"])),
            row["leased_until"],
        ]
        for row in reply
    ])  # fmt: skip
