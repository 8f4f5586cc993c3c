"""A queue's settings and counts, as the service returns them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, TypedDict
from urllib.parse import urlencode

from .http.calls import Call, Steps
from .messages import drop_none


class QueueSettings(TypedDict):
    """A queue's settings; durations in seconds."""

    lease: float  # of a read with lease="default"
    max_receives: int  # deliveries without an ack before a message is dead-lettered; 0: no limit
    dead_letter_queue: str | None  # None: the queue's name and ".dead"
    dead_letter_expired: bool  # dead-letter messages whose ttl ended, instead of dropping them
    retention: float | None  # the longest ttl of a message
    max_messages: int | None
    max_bytes: int | None
    dedup_window: float  # for which dedup_ids and retried requests are remembered
    paused: bool  # deliver nothing; accept writes
    delay: float  # of messages that name none
    expires: float | None  # delete the queue after so long empty and unused
    max_message_bytes: int | None  # of a text, in UTF-8
    dedup_content: bool  # a message without a dedup_id has the SHA-256 of its text
    dedup_scope: Literal["queue", "key"]  # in which a dedup_id is remembered
    key_lock: Literal["run", "head"]  # whether a lease blocks its whole key, or only later messages
    wait: float  # of SQS clients' reads that name none
    sqs: Mapping[str, str]  # attributes of SQS without effect
    tags: Mapping[str, str]


class SettingsChanges(TypedDict, total=False):
    """The settings to change; None resets one to its default. The others stay as they are."""

    lease: float | None
    max_receives: int | None
    dead_letter_queue: str | None
    dead_letter_expired: bool | None
    retention: float | None
    max_messages: int | None
    max_bytes: int | None
    dedup_window: float | None
    paused: bool | None
    delay: float | None
    expires: float | None
    max_message_bytes: int | None
    dedup_content: bool | None
    dedup_scope: Literal["queue", "key"] | None
    key_lock: Literal["run", "head"] | None
    wait: float | None
    sqs: Mapping[str, str] | None
    tags: Mapping[str, str] | None


class QueueStats(TypedDict):
    """A queue's current counts, and its totals since it was created."""

    ready: int
    leased: int
    delayed: int
    blocked: int
    dead: int  # messages of this queue that are in a dead-letter queue
    oldest_age: float  # seconds since the oldest ready message became ready
    bytes: int
    sent: int
    received: int
    acked: int
    expired: int
    dead_lettered: int


class Selection(TypedDict, total=False):
    """The messages to show: those after an id, or before one; of a state; of a key."""

    after: str | None
    before: str | None
    state: Literal["ready", "leased", "delayed", "blocked", "dead"] | None
    key: str | None


class QueueState(TypedDict):
    """A queue with its settings and counts."""

    queue: str
    settings: QueueSettings
    stats: QueueStats


def list_queues(prefix: str) -> Steps[dict[str, QueueStats]]:
    """Return the stats of each queue whose name begins with `prefix`, by name."""
    found: dict[str, QueueStats] = {}
    after: str | None = ""
    while after is not None:
        query = urlencode(drop_none(prefix=prefix or None, after=after or None))
        reply = yield Call("GET", f"/queues?{query}".rstrip("?"), idempotent=True)
        page = json.loads(reply.body)
        found |= {queue["queue"]: queue["stats"] for queue in page["queues"]}
        after = page.get("next")
    return found
