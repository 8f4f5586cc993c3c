"""Moves: tasks that move all messages of a dead-letter queue, done by upkeep."""

from __future__ import annotations

import uuid
from typing import Any

from psycopg.types.json import Jsonb

from storage.clock import Clock
from storage.errors import MoveNotFound, MoveRunning, QueueNotFound
from storage.model import MOVES_KEPT, Move
from storage.postgres.pool import WriteTransaction, scalar

_MOVE = "task, destination, rate, started_at, status, moved, to_move, failure"


def start_move(work: WriteTransaction, clock: Clock, source: str, to: str | None, rate: int | None) -> Move:
    """Start a move. Raises QueueNotFound, MoveRunning."""
    queue_id = _queue_id(work, source)
    if to is not None:
        _queue_id(work, to)
    started = work.run(
        f"""
        INSERT INTO moves (queue_id, task, destination, rate, started_at, to_move)
        SELECT $1::bigint, $2::text, $3::text, $4::int, $5::bigint, coalesce(sum(ready + delayed + blocked), 0)
          FROM counts WHERE queue_id = $1::bigint
        ON CONFLICT (queue_id) WHERE status = 'running' DO NOTHING RETURNING {_MOVE}
        """,
        queue_id, str(uuid.uuid4()), to, rate, work.now,
    )  # fmt: skip
    if not started:
        raise MoveRunning(source)
    work.run(
        "DELETE FROM moves WHERE queue_id = $1::bigint AND id NOT IN "
        "(SELECT id FROM moves WHERE queue_id = $1::bigint ORDER BY id DESC LIMIT $2::int) RETURNING 1",
        queue_id, MOVES_KEPT,
    )  # fmt: skip
    return _move(clock, source, started[0])


def cancel_move(work: WriteTransaction, clock: Clock, source: str, task: str) -> Move:
    """Cancel a running move. Raises QueueNotFound, MoveNotFound."""
    rows = work.run(
        "UPDATE moves SET status = 'cancelled' "
        f"WHERE queue_id = $1::bigint AND task = $2::text AND status = 'running' RETURNING {_MOVE}",
        _queue_id(work, source), task,
    )  # fmt: skip
    if not rows:
        raise MoveNotFound
    return _move(clock, source, rows[0])


def moves(work: WriteTransaction, clock: Clock, source: str, limit: int) -> list[Move]:
    """Return the queue's moves, newest first. Raises QueueNotFound."""
    rows = work.run(
        f"SELECT {_MOVE} FROM moves WHERE queue_id = $1::bigint ORDER BY id DESC LIMIT $2::int",
        _queue_id(work, source), limit,
    )  # fmt: skip
    return [_move(clock, source, row) for row in rows]


def step_move(work: WriteTransaction, number: int) -> bool:
    """Move some messages of a running move; return whether it may move more now."""
    found = work.run(
        "SELECT queue_id, name, destination, rate, started_at, moved, state "
        "FROM moves JOIN queues ON queues.id = queue_id "
        "WHERE moves.id = $1::bigint AND status = 'running' AND name IS NOT NULL FOR NO KEY UPDATE OF moves",
        number,
    )
    if not found:
        return False
    queue_id, source, to, rate, started_at, moved, state = found[0]
    limit = None if rate is None else rate * (1 + (work.now - started_at) // 1000)
    if limit is not None and limit <= moved:
        return False
    if to is not None and not work.run("SELECT 1 FROM queues WHERE name = $1::text", to):
        _note(work, number, state, "failed", "queue_not_found")
        return False
    state = scalar(
        work.run(
            "SELECT redrive($1::bigint, $2::text, $3::jsonb, $4::bigint, NULL, NULL, true, $5::text)",
            work.now, source, None if state is None else Jsonb(state), limit, to,
        )
    )  # fmt: skip
    if not state["done"]:
        _note(work, number, state, "running")
        return limit is None
    if to is None and work.run(
        "SELECT 1 FROM messages WHERE queue_id = $1::bigint AND origin IS NULL LIMIT 1", queue_id
    ):
        _note(work, number, state, "failed", "no_origin")
    else:
        _note(work, number, state, "completed")
    return False


def _note(work: WriteTransaction, number: int, state: Any, status: str, failure: str | None = None) -> None:
    work.run(
        "UPDATE moves SET moved = coalesce(($2::jsonb ->> 'count')::bigint, 0), status = $3::text, failure = $4::text, "
        "state = $2::jsonb WHERE id = $1::bigint RETURNING 1",
        number, None if state is None else Jsonb(state), status, failure,
    )  # fmt: skip


def _queue_id(work: WriteTransaction, name: str) -> int:
    found = work.run("SELECT id FROM queues WHERE name = $1::text", name)
    if not found:
        raise QueueNotFound(name)
    return int(scalar(found))


def _move(clock: Clock, source: str, row: Any) -> Move:
    move = Move(row[0], source, *row[1:])
    return move._replace(started_at=clock.wall(move.started_at))
