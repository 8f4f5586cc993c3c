"""Changing and deleting queues so that dead letters never move in a cycle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage.codec import read_settings, write_settings
from storage.errors import PreconditionFailed
from storage.model import QueueSettings, check_chain, check_key_lock
from storage.postgres.pool import WriteTransaction, scalar

_SETTINGS = "SELECT version, settings::text FROM queues WHERE name = $1::text"
_ANY_MESSAGE = "SELECT 1 FROM queues AS q WHERE name = $1::text AND EXISTS (SELECT FROM messages WHERE queue_id = q.id)"


def configure(work: WriteTransaction, name: str, changes: Mapping[str, Any], version: int | None) -> tuple[int, str]:
    """Change the settings; return the new version and the settings' JSON. Raises PreconditionFailed, InvalidInput."""
    if "dead_letter_queue" in changes:
        _lock_chains(work)
    if version == 0:  # no other transaction creates the queue meanwhile
        work.run("SELECT pg_advisory_xact_lock(-1, hashtext($1::text))", name)
    is_new = version == 0 and not work.run(_SETTINGS, name)
    if version is None or is_new:
        work.run("SELECT queue_for_writing($1::bigint, $2::text)", work.now, name)
    found = work.run(f"{_SETTINGS} FOR NO KEY UPDATE", name)
    if not found or not (is_new or version in (None, found[0][0])):
        raise PreconditionFailed(f"the settings of queue '{name}' have changed", queue=name)
    former = read_settings(found[0][1])
    settings = former.changed(changes)
    if "dead_letter_queue" in changes:
        _check_chain(work, name, settings)
    check_key_lock(former, settings, is_empty=not work.run(_ANY_MESSAGE, name))
    document = write_settings(settings)
    changed = work.run(
        "UPDATE queues SET settings = $2::jsonb, version = version + 1, used_at = $3::bigint, modified_at = $3::bigint "
        "WHERE name = $1::text RETURNING version",
        name, document, work.now,
    )  # fmt: skip
    return scalar(changed), document


def delete_queue(work: WriteTransaction, name: str) -> bool:
    """Delete the queue and return True. Raises QueueNotFound, InvalidInput."""
    _lock_chains(work)
    if scalar(work.run("SELECT delete_queue($1::bigint, $2::text)", work.now, name)):
        _check_chain(work, name, QueueSettings())
    return True


def expire_queue(work: WriteTransaction, number: int) -> None:
    """Delete the queue if it is unused for as long as its setting `expires`. Raises InvalidInput."""
    _lock_chains(work)
    name = scalar(work.run("SELECT expire_queue($1::bigint, $2::bigint)", work.now, number))
    if name is not None:
        _check_chain(work, name, QueueSettings())


def _lock_chains(work: WriteTransaction) -> None:
    """Wait for other changes of dead-letter queues, because two at once could form a cycle."""
    work.run("SELECT pg_advisory_xact_lock(-2, 0)")


def _check_chain(work: WriteTransaction, name: str, settings: QueueSettings) -> None:
    def settings_of(queue: str) -> QueueSettings:
        found = work.run(_SETTINGS, queue)
        return read_settings(found[0][1]) if found else QueueSettings()

    check_chain(name, settings, settings_of)
