"""JSON schemas of requests and responses; the limits are those of storage.model."""

from __future__ import annotations

from dataclasses import asdict

from storage.model import QueueSettings, QueueStats, State
from storage.store import MAX_REASONS
from storage.validation import (
    DEDUP_SCOPES,
    KEY_LOCKS,
    MAX_ATTRIBUTES,
    MAX_BATCH,
    MAX_DURATION,
    MAX_LEASE,
    MAX_LIMIT,
    MAX_REASON,
    MAX_TRACE,
    MAX_TYPE,
    MAX_WAIT,
    QUEUE_NAME,
)
from web.native import request_parsing
from web.native.request import IDEMPOTENCY_KEY
from web.pages.json_schema import (
    MOST_WHOLE,
    NO_NUL,
    Schema,
    listed,
    moment,
    name,
    or_null,
    record,
    ref,
    seconds,
    strings,
    whole,
)

QUEUE = {"type": "string", "pattern": f"^{QUEUE_NAME.pattern}$", "description": "A queue's name."}
RECEIPT = {"type": "string", "description": "The handle of one delivery, from a leased read."}
IDEMPOTENCY = {"type": "string", "pattern": f"^{IDEMPOTENCY_KEY.pattern}$"}
LEASE = {
    "description": "Seconds for which no other reader gets the message, or `default` for the queue's setting.",
    "anyOf": [{"type": "number", "minimum": 1, "maximum": MAX_LEASE}, {"const": "default"}],
}
LIMIT = whole("At most this many messages.", 1, MAX_LIMIT)
WAIT = seconds("Seconds to wait for a message if there is none; 0 if omitted.", 0, MAX_WAIT)
RECIPIENT = name("Only messages for this recipient; without it, only unaddressed ones.")
RECIPIENTS = {"const": "any", "description": "Messages for every recipient and none; not together with `recipient`."}
REASON = name("Stored with the dead letter.", MAX_REASON)

# The members of a message, in requests and in replies. A `default` would make a member required in TypeScript.
WRITTEN = {
    "text": {"type": "string", "description": "The payload: any Unicode but lone surrogates, returned unchanged."},
    "key": name("The service delivers messages of one key in order, to one consumer at a time."),
    "priority": whole("Higher first; within one priority, oldest first. 0 if omitted.", 0, 9),
    "recipient": name("Only a reader that names this recipient gets the message."),
    "attributes": {
        "type": "object",
        "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
        "description": f"The client's own metadata, {MAX_ATTRIBUTES} bytes of JSON at most.",
    },
    "delay": seconds("Seconds before which the message is not delivered; then it takes its old place."),
    "ttl": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": MAX_DURATION,
        "description": "Seconds after which the message is dropped, or dead-lettered by the queue's setting.",
    },
    "dedup_id": name("Within the queue's `dedup_window` the service does not store a second message with the same id."),
    "attribute_types": strings("The types of attributes that their JSON does not show.", maxLength=MAX_TYPE),
    "group": name("A group, without effect."),
    "trace": name("The trace to which the message belongs.", MAX_TRACE),
}
ID = {
    "type": "string",
    "pattern": f"^{request_parsing.ID.pattern}$",
    "description": "Increasing in a queue, never reused.",
}
ENVELOPE = {
    "id": ID,
    "queue": ref("QueueName"),
    "sent_at": moment("When the message was sent."),
    "receive_count": whole("How often the message was delivered."),
}
LEASED_UNTIL = moment("When the lease ends.")
LEASED_BY = {"type": "string", "description": "The name of the token that holds the lease, or the client's address."}
DUPLICATES = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_BATCH - 1},
    "minItems": 1,
    "description": "The places of messages that were not stored because their `dedup_id` was known; omitted if none.",
}
_DEFAULT_QUEUE = ref("QueueName") | {"description": "`default` if omitted."}
HELD = {"receipt": RECEIPT, "leased_until": LEASED_UNTIL}
# Messages in columns.
RUN = {
    "texts": listed({"type": "string"}, 1, MAX_BATCH) | {"description": "The text of each message."},
    "attributes": {
        "type": "object",
        "additionalProperties": listed({"type": ["string", "number", "boolean", "null"]}, 1, MAX_BATCH),
        "description": "For each name an array with a value for each message; all messages have these names.",
    },
}

_SETTINGS: Schema = {
    "lease": seconds("Seconds, for reads with `lease=default`; 0: the message is ready again at once.", 0, MAX_LEASE),
    "max_receives": whole("Dead-letter a message after this many deliveries without an ack; 0: no limit."),
    "dead_letter_queue": {
        "type": ["string", "null"],
        "pattern": QUEUE["pattern"],
        "description": "The name of the dead-letter queue; null: `{queue}.dead`.",
    },
    "retention": or_null(WRITTEN["ttl"]) | {"description": "Seconds after which any message expires; null: never."},
    "max_messages": or_null(whole("A write that would exceed it is 429; null: no limit.", 1)),
    "max_bytes": or_null(whole("The same, for the stat `bytes`; null: no limit.", 1)),
    "dedup_window": seconds("Seconds for which the queue remembers `dedup_id` and `Idempotency-Key`."),
    "dead_letter_expired": {"type": "boolean", "description": "Dead-letter expired messages instead of dropping them."},
    "paused": {"type": "boolean", "description": "Stop deliveries; writes go on."},
    "delay": seconds("Seconds, for messages without a `delay`."),
    "expires": or_null(seconds("Seconds after which an empty, unused queue is deleted; null: never.", 1)),
    "wait": seconds("Seconds, for reads through the SQS endpoint that name no wait.", 0, MAX_WAIT),
    "max_message_bytes": or_null(whole("A message with a longer text, in UTF-8, is 400; null: no limit.", 1)),
    "dedup_content": {
        "type": "boolean",
        "description": "A message without a `dedup_id` has its text's SHA-256 as one.",
    },
    "dedup_scope": {
        "enum": list(DEDUP_SCOPES),
        "description": "Where a `dedup_id` counts: in the queue, or among the messages of one key.",
    },
    "key_lock": {
        "enum": list(KEY_LOCKS),
        "description": "While a message of a key is leased, deliver none of its others (`run`), or only earlier ones "
        "that are free again (`head`); then a read takes all that it can of one key before the next.",
    },
    "sqs": strings("Attributes that the SQS endpoint stores, without effect.", **NO_NUL) | {"propertyNames": NO_NUL},
    "tags": strings("The queue's tags, without effect.", **NO_NUL) | {"propertyNames": NO_NUL},
}
SETTINGS = {name: _SETTINGS[name] | {"default": value} for name, value in asdict(QueueSettings()).items()}

STATS: Schema = {
    "ready": whole("Messages that can be delivered now."),
    "leased": whole("Messages that a reader holds."),
    "delayed": whole("Messages not due yet."),
    "blocked": whole("Messages behind another one of their key."),
    "dead": whole("Messages from this queue that are in a dead-letter queue."),
    "oldest_age": seconds(
        "Seconds that the longest-waiting ready message has been ready; 0 if none, or while paused.", 0, MOST_WHOLE
    ),
    "bytes": whole("Size of the texts and optional fields in the queue."),
    "sent": whole("Messages sent since the queue was created."),
    "received": whole("Deliveries since then."),
    "acked": whole("Messages settled since then."),
    "expired": whole("Messages expired since then."),
    "dead_lettered": whole("Messages that became dead letters since then."),
}

CHOSEN = {
    "ids": or_null(listed(ID, 1, MAX_BATCH) | {"description": "Only these; null or omitted: all."}),
    "reason": or_null(REASON | {"description": "Only those whose latest reason is this."}),
}

REASONS: Schema = {
    "reason": {"type": "string", "description": "The latest reason of these dead letters."},
    "dead_letters": whole("How many.", 1),
    "oldest_at": moment("When the first of them became a dead letter."),
    "newest_at": moment("When the last of them did."),
}

STATUS: Schema = {
    "version": {"type": "string", "description": "Of the service."},
    "engine": {"enum": ["sqlite", "postgresql"]},
    "started_at": moment("When this node started."),
    "database_bytes": whole("Size of the database on disk, without its log."),
    "log_bytes": or_null(whole("Size of the write-ahead log; null: unknown.")),
    "disk_free_bytes": or_null(whole("Free space on the database's disk; null: unknown.")),
    "requests": whole("Requests answered."),
    "errors": whole("Requests answered with a status of 500 or more."),
    "commits": whole("Commits."),
    "commit_seconds": seconds("Seconds that they took together.", 0, MOST_WHOLE),
    "waiting_readers": whole("Reads that wait for a message now."),
}

PROBLEM: Schema = {
    "type": {"const": "about:blank"},
    "title": {"type": "string", "description": "What `code` means, in words."},
    "status": {"type": "integer", "minimum": 400, "maximum": 599},
    "detail": {"type": "string", "description": "What was wrong with this request, in words."},
    "code": {"type": "string", "pattern": "^[a-z_]+$", "description": "Stable, for programs."},
    "field": {"type": "string", "description": "The wrong field, parameter or header."},
    "index": {"type": "integer", "minimum": 0, "description": "Its place in a batch."},
    "queue": {"type": "string", "description": "The queue concerned."},
}

SCHEMAS: dict[str, Schema] = {
    "QueueName": QUEUE,
    "Message": record(WRITTEN, "text", description="What a client writes."),
    "Batch": listed(ref("Message"), 1, MAX_BATCH) | {"description": "Stored whole and in order, or not at all."},
    "Run": record(
        RUN, "texts", description="A batch of messages that have only a text and attributes of the same names."
    ),
    "StoredMessage": record(
        {
            "id": ID,
            "duplicate": {"type": "boolean", "description": "true: not stored, because its `dedup_id` was known."},
        }
        | WRITTEN,
        "id",
        "text",
        description="A message as written, with its id; for a duplicate, the id of the first message.",
    ),
    "Ids": record(
        {"ids": listed(ID), "duplicates": DUPLICATES}, "ids", description="The ids of the sent messages, in order."
    ),
    "TakenMessage": record(
        {"queue": ref("QueueName")} | WRITTEN,
        "text",
        description="A message as written. `queue` appears in a read of several messages from several queues.",
    ),
    "LeasedMessage": record(
        ENVELOPE | HELD | WRITTEN,
        *ENVELOPE,
        *HELD,
        "text",
        description="A message in its envelope, held until the lease ends.",
    ),
    "LeasedRun": record(
        ENVELOPE | {"count": whole("How many messages.", 2)} | HELD | RUN,
        *ENVELOPE,
        "count",
        *HELD,
        "texts",
        description="Consecutive messages: `id` is that of the first, the others follow one by one, and `receipt` "
        "covers all of them.",
    ),
    "PeekedMessage": record(
        ENVELOPE | {"state": ref("State"), "leased_until": LEASED_UNTIL, "leased_by": LEASED_BY} | WRITTEN,
        *ENVELOPE,
        "state",
        "text",
        description="A message in the queue. `leased_until` and, if known, `leased_by` appear if it is leased.",
    ),
    "State": {"type": "string", "enum": [str(state) for state in State], "description": "The state of a message."},
    "LeaseChange": {
        "description": "Extend the lease, release the message, or move it to the dead letters.",
        "oneOf": [ref("LeaseExtension"), ref("Release"), ref("Rejection")],
    },
    "LeaseExtension": record({"lease": seconds("The lease ends this many seconds from now.", 1, MAX_LEASE)}, "lease"),
    "Release": record(
        {
            "lease": {"type": "integer", "const": 0},
            "delay": seconds("Seconds until the message can be delivered again; 0 if omitted."),
            "counted": {
                "type": "boolean",
                "description": "false: do not count this delivery; `receive_count` falls by one.",
            },
        },
        "lease",
    ),
    "Rejection": record(
        {"dead": {"type": "boolean", "const": True}, "reason": REASON},
        "dead",
        description="Move the message to the dead letters.",
    ),
    "ReceiptOrIdChange": {
        "description": "A LeaseChange for a receipt, a MessageChange for an id.",
        "anyOf": [ref("LeaseChange"), ref("MessageChange")],
    },
    "MessageChange": {
        "description": "Reschedule a message that is not leased, or move it to the dead letters.",
        "oneOf": [ref("Reschedule"), ref("Rejection")],
    },
    "Reschedule": record({"delay": seconds("The message is due this many seconds from now; 0: now.")}, "delay"),
    "LeaseEnd": record({"leased_until": LEASED_UNTIL}, "leased_until"),
    "Receipts": record({"receipts": listed(RECEIPT, 1, MAX_BATCH)}, "receipts"),
    "AckResult": record(
        {
            "acked": whole("How many messages were acked.", 0, MAX_BATCH),
            "stale": listed(RECEIPT) | {"description": "Receipts whose message was leased again since."},
            "missing": listed(RECEIPT) | {"description": "Receipts whose message no longer exists, or never did."},
        },
        "acked",
        "stale",
        "missing",
    ),
    "Extension": record(
        {
            "receipts": listed(RECEIPT, 1, MAX_BATCH),
            "lease": seconds("The leases end this many seconds from now.", 1, MAX_LEASE),
        },
        "receipts",
        "lease",
    ),
    "ExtendResult": record(
        {
            "extended": whole("How many leases were extended.", 0, MAX_BATCH),
            "leased_until": LEASED_UNTIL,
            "stale": listed(RECEIPT) | {"description": "Receipts whose message was released or leased again since."},
            "missing": listed(RECEIPT) | {"description": "Receipts whose message no longer exists, or never did."},
        },
        "extended",
        "leased_until",
        "stale",
        "missing",
    ),
    "Transaction": record(
        {
            "ack": listed(RECEIPT, 0, MAX_BATCH),
            "send": listed(ref("AddressedMessage"), 0, MAX_BATCH),
            "receive": ref("Receive"),
        },
        minProperties=1,
        description="The service does all of it in one commit, or nothing.",
    ),
    "AddressedMessage": record({"queue": _DEFAULT_QUEUE} | WRITTEN, "text", description="A message and its queue."),
    "Receive": record(
        {
            "queue": _DEFAULT_QUEUE,
            "limit": LIMIT | {"description": f"{LIMIT['description']} 1 if omitted."},
            "lease": LEASE | {"description": f"{LEASE['description']} `default` if omitted."},
            "wait": WAIT,
            "recipient": RECIPIENT,
            "recipients": RECIPIENTS,
        },
        **{"not": {"required": ["recipient", "recipients"]}},
        description="The next messages, leased; a `wait` begins after the commit.",
    ),
    "Transacted": record(
        {"ids": listed(ID), "duplicates": DUPLICATES, "messages": listed(ref("LeasedMessage"))},
        "ids",
        description="`messages` appears if the request has `receive`.",
    ),
    "TransactedRuns": record(
        {
            "ids": listed(ID),
            "duplicates": DUPLICATES,
            "messages": listed({"anyOf": [ref("LeasedMessage"), ref("LeasedRun")]}),
        },
        "ids",
        "messages",
        description="The same, with consecutive messages as one.",
    ),
    "QueueSettings": record(SETTINGS, *SETTINGS),
    "SettingsChange": record(
        {name: or_null(_SETTINGS[name]) for name in SETTINGS},  # without defaults: PUT keeps what it does not name
        description="Changes the settings it names and keeps the others; null restores a default.",
    ),
    "QueueStats": record(STATS, *QueueStats._fields),
    "QueueListing": record(
        {
            "queues": listed(
                record(
                    {"queue": ref("QueueName"), "stats": ref("QueueStats"), "paused": _SETTINGS["paused"]},
                    "queue",
                    "stats",
                    "paused",
                )
            ),
            "next": QUEUE | {"description": "The last name, if more may follow: pass it as `after`."},
        },
        "queues",
    ),
    "Queue": record(
        {"queue": ref("QueueName"), "stats": ref("QueueStats"), "settings": ref("QueueSettings")},
        "queue",
        "stats",
        "settings",
    ),
    "Reasons": record(
        {
            "reasons": listed(record(REASONS, *REASONS), 0, MAX_REASONS),
            "complete": {"type": "boolean", "description": "false: there are more dead letters, or more reasons."},
        },
        "reasons",
        "complete",
    ),
    "Purged": record({"purged": whole("How many messages were removed.")}, "purged"),
    "Purge": record(CHOSEN, description="Which messages to remove; with `reason`, only dead letters."),
    "Redrive": record(
        {"limit": or_null(whole("At most this many; null or omitted: all.", 1, 2**53))} | CHOSEN,
        description="Which dead letters to move back.",
    ),
    "Redriven": record({"redriven": whole("How many dead letters were moved back.")}, "redriven"),
    "NodeStatus": record(STATUS, *STATUS),
    "Status": record({"status": {"type": "string", "enum": ["alive", "ready"]}}, "status"),
    "Index": record(
        {name: {"type": "string"} for name in ("service", "send", "receive", "queues", "reference", "openapi")},
        "service",
        description="A guide to the service.",
    ),
    "Problem": record(PROBLEM, "type", "title", "status", "detail", "code", description="RFC 9457."),
}
