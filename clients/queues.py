"""The settings and counts of queues and of the service, as it returns them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypedDict


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
    """The messages to show: those after an id, or before one; of a state; of a key; with a text; with a reason."""

    after: str | None
    before: str | None
    state: Literal["ready", "leased", "delayed", "blocked", "dead"] | None
    key: str | None
    text: str | None
    reason: str | None


class Chosen(TypedDict, total=False):
    """The messages to remove or move back: those with these ids, and dead letters with this latest reason."""

    ids: Iterable[str] | None
    reason: str | None


class QueueState(TypedDict):
    """A queue with its settings and counts."""

    queue: str
    settings: QueueSettings
    stats: QueueStats


class Reason(TypedDict):
    """The dead letters with one latest reason, and when the first and the last of them died (RFC 3339)."""

    reason: str
    dead_letters: int
    oldest_at: str
    newest_at: str


class Reasons(TypedDict):
    """The reasons of dead letters, most frequent first. Not `complete`: there are more of either."""

    reasons: list[Reason]
    complete: bool


class NodeStatus(TypedDict):
    """The state of one node of the service, with totals of all its workers since it started."""

    version: str
    engine: Literal["sqlite", "postgresql"]
    started_at: str  # RFC 3339
    database_bytes: int
    log_bytes: int | None  # None: unknown
    disk_free_bytes: int | None
    requests: int
    errors: int  # requests answered with a status of 500 or more
    commits: int
    commit_seconds: float
    waiting_readers: int
