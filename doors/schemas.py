"""JSON schemas of what the API takes and tells; the figures are the domain's own."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from doors import parse
from doors.wire import IDEMPOTENCY_KEY
from storage.model import (
    MAX_ATTRIBUTES,
    MAX_BATCH,
    MAX_DURATION,
    MAX_LEASE,
    MAX_LIMIT,
    MAX_NAME,
    MAX_REASON,
    MAX_WAIT,
    QUEUE_NAME,
    QueueSettings,
    QueueStats,
    State,
)

Schema = dict[str, Any]
MOST_WHOLE = 2**53 - 1  # what every JSON reader keeps exactly


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def record(properties: Schema, *required: str, **more: Any) -> Schema:
    """An object with these members and no others."""
    told = {"type": "object", "properties": properties, "additionalProperties": False, **more}
    return told | ({"required": list(required)} if required else {})


def listed(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    told = {"type": "array", "items": items, "minItems": least}
    return told if most is None else told | {"maxItems": most}


def seconds(description: str, least: float = 0, most: float = MAX_DURATION, **more: Any) -> Schema:
    return {"type": "number", "minimum": least, "maximum": most, "description": description, **more}


def whole(description: str, least: int = 0, most: int = MOST_WHOLE, **more: Any) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most, "description": description, **more}


def name(description: str, most: int = MAX_NAME) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": most, "description": description}


def moment(description: str) -> Schema:
    return {"type": "string", "format": "date-time", "description": description}


def or_null(schema: Schema) -> Schema:
    """The same, or null to set it back to its default."""
    return schema if isinstance(schema["type"], list) else schema | {"type": [schema["type"], "null"]}


QUEUE = {"type": "string", "pattern": f"^{QUEUE_NAME.pattern}$", "description": "A queue's name."}
RECEIPT = {"type": "string", "description": "The handle of one delivery, as a leased read gave it."}
IDEMPOTENCY = {"type": "string", "pattern": f"^{IDEMPOTENCY_KEY.pattern}$"}
LEASE = {
    "description": "Seconds until the message is given to another, or `default` for the queue's setting.",
    "anyOf": [{"type": "number", "minimum": 1, "maximum": MAX_LEASE}, {"const": "default"}],
}
LIMIT = whole("At most so many messages.", 1, MAX_LIMIT)
WAIT = seconds("How long to wait for a message if there is none.", 0, MAX_WAIT, default=0)
RECIPIENT = name("Only messages for this recipient; without it only those addressed to nobody.")
RECIPIENTS = {"const": "any", "description": "Messages whatever their recipient is; not together with `recipient`."}
REASON = name("Kept with the dead letter.", MAX_REASON)

# The members of a message, as its writer gives them and as they come back.
WRITTEN = {
    "text": {"type": "string", "description": "The payload: any Unicode but lone surrogates; it comes back exactly."},
    "key": name("Messages of one key are delivered in order, to one consumer at a time."),
    "priority": whole("Higher first; within one priority, oldest first.", 0, 9, default=0),
    "recipient": name("Only a reader that names this recipient gets the message."),
    "attributes": {
        "type": "object",
        "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
        "description": f"The client's own metadata, {MAX_ATTRIBUTES} bytes of JSON at most.",
    },
    "delay": seconds("Not delivered before so many seconds have passed; when due it takes its old place."),
    "ttl": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": MAX_DURATION,
        "description": "Not delivered after so many seconds; then dropped, or dead-lettered by the queue's setting.",
    },
    "dedup_id": name("A second message with the same id in the queue's `dedup_window` is not stored."),
}
ID = {"type": "string", "pattern": f"^{parse.ID.pattern}$", "description": "Rising in a queue, never used again."}
ENVELOPE = {
    "id": ID,
    "queue": ref("QueueName"),
    "sent_at": moment("When it was sent."),
    "receive_count": whole("How often it was delivered."),
}
LEASED_UNTIL = moment("When the lease ends.")
DUPLICATES = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_BATCH - 1},
    "minItems": 1,
    "description": "The places of messages that were not stored, since their `dedup_id` was known; left out if none.",
}
HELD = {"receipt": RECEIPT, "leased_until": LEASED_UNTIL}
# Messages in columns.
RUN = {
    "texts": listed({"type": "string"}, 1, MAX_BATCH) | {"description": "The text of each message."},
    "attributes": {
        "type": "object",
        "additionalProperties": listed({"type": ["string", "number", "boolean", "null"]}, 1, MAX_BATCH),
        "description": "By name a value for each message; all of them have attributes of these names.",
    },
}

_SETTINGS: Schema = {
    "lease": seconds("For readers that say `lease=default`.", 1, MAX_LEASE),
    "max_receives": whole("Deliveries without an ack after which a message is dead-lettered; 0: no limit."),
    "dead_letter_queue": {
        "type": ["string", "null"],
        "pattern": QUEUE["pattern"],
        "description": "Its name; null: `{queue}.dead`.",
    },
    "retention": or_null(WRITTEN["ttl"]) | {"description": "Seconds no message outlives; null: kept until read."},
    "max_messages": or_null(whole("A write that would go above is 429; null: no limit.", 1)),
    "max_bytes": or_null(whole("The same, of the stat `bytes`; null: no limit.", 1)),
    "dedup_window": seconds("How long `dedup_id` and `Idempotency-Key` are remembered."),
    "dead_letter_expired": {"type": "boolean", "description": "Expired messages become dead letters."},
    "paused": {"type": "boolean", "description": "Nothing is delivered; writes go on."},
    "delay": seconds("Of messages that name none."),
    "expires": or_null(seconds("An empty queue that nobody uses for so long is deleted; null: never.", 1)),
}
SETTINGS = {field.name: _SETTINGS[field.name] | {"default": field.default} for field in fields(QueueSettings)}

STATS: Schema = {
    "ready": whole("Messages that can be delivered now."),
    "leased": whole("Messages a reader holds."),
    "delayed": whole("Messages not due yet."),
    "blocked": whole("Messages behind another of their key."),
    "dead": whole("Messages from this queue that lie in a dead-letter queue."),
    "oldest_age": seconds(
        "How long the longest-waiting ready message has been ready; 0 for none, or while paused.", 0, MOST_WHOLE
    ),
    "bytes": whole("Of the texts and optional fields in the queue."),
    "sent": whole("Messages sent since the queue came into being."),
    "received": whole("Deliveries since then."),
    "acked": whole("Messages settled since then."),
    "expired": whole("Messages that outlived their `ttl` since then."),
    "dead_lettered": whole("Messages that became dead letters since then."),
}

PROBLEM: Schema = {
    "type": {"const": "about:blank"},
    "title": {"type": "string", "description": "What `code` means, for people."},
    "status": {"type": "integer", "minimum": 400, "maximum": 599},
    "detail": {"type": "string", "description": "What was wrong this time, for people."},
    "code": {"type": "string", "pattern": "^[a-z_]+$", "description": "Stable: what a program looks at."},
    "field": {"type": "string", "description": "The field, parameter or header that was wrong."},
    "index": {"type": "integer", "minimum": 0, "description": "Its place in a batch."},
    "queue": {"type": "string", "description": "The queue that was meant."},
}

SCHEMAS: dict[str, Schema] = {
    "QueueName": QUEUE,
    "Message": record(WRITTEN, "text", description="What a client writes."),
    "Batch": listed(ref("Message"), 1, MAX_BATCH) | {"description": "Stored whole and in order, or not at all."},
    "Run": record(
        RUN, "texts", description="Messages that are nothing but texts and attributes: the same as a batch of them."
    ),
    "StoredMessage": record(
        {"id": ID, "duplicate": {"const": True, "description": "It was not stored: its `dedup_id` was known."}}
        | WRITTEN,
        "id",
        "text",
        description="A message as written, and its id; of a duplicate the id of the first one.",
    ),
    "Ids": record(
        {"ids": listed(ID), "duplicates": DUPLICATES}, "ids", description="The ids of what was sent, in order."
    ),
    "TakenMessage": record(
        {"queue": ref("QueueName")} | WRITTEN,
        "text",
        description="A message as written. `queue` is told in a read of several messages from several queues.",
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
        description="Messages that lie together: `id` is of the first, the others' follow one by one, and `receipt` "
        "is of all of them.",
    ),
    "PeekedMessage": record(
        ENVELOPE | {"state": ref("State"), "leased_until": LEASED_UNTIL} | WRITTEN,
        *ENVELOPE,
        "state",
        "text",
        description="A message as it lies there. `leased_until` is told of a leased one.",
    ),
    "State": {"type": "string", "enum": [str(state) for state in State], "description": "Where a message stands."},
    "LeaseChange": {
        "description": "Extend the lease, give the message back, or move it to the dead letters.",
        "oneOf": [
            record({"lease": seconds("The lease ends so many seconds from now.", 1, MAX_LEASE)}, "lease"),
            record(
                {
                    "lease": {"const": 0},
                    "delay": seconds("Delivered again after so many seconds.", default=0),
                    "counted": {
                        "type": "boolean",
                        "default": True,
                        "description": "false: as if it had not been delivered; its `receive_count` is one less.",
                    },
                },
                "lease",
            ),
            record({"dead": {"const": True}, "reason": REASON}, "dead"),
        ],
    },
    "ReceiptOrIdChange": {
        "description": "By a receipt a LeaseChange, by an id a MessageChange.",
        "anyOf": [ref("LeaseChange"), ref("MessageChange")],
    },
    "MessageChange": {
        "description": "Let a message that is not leased be due then, or move it to the dead letters.",
        "oneOf": [
            record({"delay": seconds("Due so many seconds from now; 0: now.")}, "delay"),
            record({"dead": {"const": True}, "reason": REASON}, "dead"),
        ],
    },
    "LeaseEnd": record({"leased_until": LEASED_UNTIL}, "leased_until"),
    "Receipts": record({"receipts": listed(RECEIPT, 1, MAX_BATCH)}, "receipts"),
    "AckResult": record(
        {
            "acked": whole("How many messages are gone.", 0, MAX_BATCH),
            "stale": listed(RECEIPT) | {"description": "Receipts whose message was leased again since."},
            "missing": listed(RECEIPT) | {"description": "Receipts whose message is gone, or never was."},
        },
        "acked",
        "stale",
        "missing",
    ),
    "Extension": record(
        {
            "receipts": listed(RECEIPT, 1, MAX_BATCH),
            "lease": seconds("The leases end so many seconds from now.", 1, MAX_LEASE),
        },
        "receipts",
        "lease",
    ),
    "ExtendResult": record(
        {
            "extended": whole("How many leases were extended.", 0, MAX_BATCH),
            "leased_until": LEASED_UNTIL,
            "stale": listed(RECEIPT) | {"description": "Receipts whose message was released or leased again since."},
            "missing": listed(RECEIPT) | {"description": "Receipts whose message is gone, or never was."},
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
        description="All of it happens in one commit, or nothing.",
    ),
    "AddressedMessage": record(
        {"queue": {"default": "default"} | ref("QueueName")} | WRITTEN, "text", description="A message and its queue."
    ),
    "Receive": record(
        {
            "queue": {"default": "default"} | ref("QueueName"),
            "limit": LIMIT | {"default": 1},
            "lease": LEASE | {"default": "default"},
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
        description="`messages` is told when `receive` was asked for.",
    ),
    "TransactedRuns": record(
        {
            "ids": listed(ID),
            "duplicates": DUPLICATES,
            "messages": listed({"anyOf": [ref("LeasedMessage"), ref("LeasedRun")]}),
        },
        "ids",
        "messages",
        description="The same, with messages that lie together told as one.",
    ),
    "QueueSettings": record(SETTINGS, *SETTINGS),
    "SettingsChange": record(
        {name: or_null(schema) for name, schema in SETTINGS.items()},
        description="The settings named are changed, the others kept; null sets one back to its default.",
    ),
    "QueueStats": record(STATS, *QueueStats._fields),
    "QueueListing": record(
        {
            "queues": listed(record({"queue": ref("QueueName"), "stats": ref("QueueStats")}, "queue", "stats")),
            "next": QUEUE | {"description": "The last name, when more may follow: `after=` it goes on."},
        },
        "queues",
    ),
    "Queue": record(
        {"queue": ref("QueueName"), "stats": ref("QueueStats"), "settings": ref("QueueSettings")},
        "queue",
        "stats",
        "settings",
    ),
    "Purged": record({"purged": whole("How many messages are gone.")}, "purged"),
    "Redrive": record(
        {
            "limit": or_null(whole("At most so many; null or not given: all.", 1, 2**53)),
            "ids": or_null(listed(ID, 1, MAX_BATCH) | {"description": "Only these; null or not given: all."}),
            "reason": or_null(REASON | {"description": "Only those that last died of this."}),
        },
        description="Which dead letters go back.",
    ),
    "Redriven": record({"redriven": whole("How many dead letters went back.")}, "redriven"),
    "Status": record({"status": {"type": "string", "enum": ["alive", "ready"]}}, "status"),
    "Index": record(
        {name: {"type": "string"} for name in ("service", "send", "receive", "queues", "reference", "openapi")},
        "service",
        description="Where to go from here.",
    ),
    "Problem": record(PROBLEM, "type", "title", "status", "detail", "code", description="RFC 9457."),
}
