"""The API as an OpenAPI 3.1 document: every route and its responses."""

from __future__ import annotations

from typing import Any

from bottle import Bottle, HTTPResponse

from settings import VERSION
from storage.store import MAX_LOOKED
from storage.validation import MAX_PAGE, MAX_REASON, MAX_SEARCH, QUEUE_NAME
from web.native import responses
from web.native.request import JSON, NDJSON, RUNS, TEXT
from web.pages import examples
from web.pages.json_schema import Schema, listed, name, ref
from web.pages.openapi_responses import (
    ACCESS,
    CODES,
    DONE,
    EVERYWHERE,
    GUARDED,
    LINK,
    MORE_CONTENT,
    NO_STORE,
    NOTHING_THERE,
    OR,
    READS_BODY,
    RECEIVED,
    RESPONSES,
    RETRY,
    STORAGE,
    TO_THE_PAGE,
    json_of,
    list_or_lines,
    problem,
    text_of,
)
from web.pages.schemas import IDEMPOTENCY, LEASE, LIMIT, QUEUE, RECEIPT, RECIPIENT, RECIPIENTS, SCHEMAS, WAIT

_IDEMPOTENT = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Do the request once: a retry with this key gets the first reply.",
    "schema": IDEMPOTENCY,
}
_QUEUE = {"name": "queue", "in": "path", "required": True, "schema": ref("QueueName")}
_RECEIPT = {"name": "receipt", "in": "path", "required": True, "schema": RECEIPT | {"minLength": 1}}


def mount(app: Bottle) -> None:
    @app.get("/openapi.json")
    def openapi() -> HTTPResponse:
        return responses.value(document())


def document() -> dict[str, Any]:
    paths = _messages("") | _messages("/queues/{queue}") | _transactions() | _queues() | _operations()
    examples.add_to(paths)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "queue_service",
            "version": VERSION,
            "summary": "A durable message queue over HTTP and JSON.",
            "description": "`/messages` is the queue `default`. Times are RFC 3339, UTC; durations are seconds; "
            "write whole numbers without a fraction.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "."}],  # relative to this document, so a path of a shared host works too
        "security": [{}, {"bearer": []}, {"basic": []}],
        "tags": [
            {"name": "messages", "description": "Send, receive and settle."},
            {"name": "queues", "description": "Inspect and administer queues."},
            {"name": "operations", "description": "Check and monitor the service."},
        ],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "responses": {name: problem(name.split(OR)) for name in sorted(_problems_of(paths))},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "The secret of a token."},
                "basic": {"type": "http", "scheme": "basic", "description": "The name of a token and its secret."},
            },
        },
    }


def _messages(prefix: str) -> dict[str, Any]:
    """Return the routes at /messages, or the same under a queue."""
    at = [_QUEUE] if prefix else []
    to, of, inside = ("_to_queue", "_from_queue", "_in_queue") if prefix else ("", "", "")
    handle = "{receipt_or_id}" if prefix else "{receipt}"
    where = "of the queue" if prefix else "of `default`"
    return {
        f"{prefix}/messages": {
            "parameters": at,
            "post": _operation(
                "messages",
                f"send{to}",
                f"Write a message, or a batch, to {'the queue' if prefix else '`default`'}",
                [_IDEMPOTENT],
                {"200": json_of("The write is on disk.", {"anyOf": [ref("StoredMessage"), ref("Ids")]})},
                (*READS_BODY, "idempotency_mismatch", "queue_full", *STORAGE),
                _SEND_BODY,
                "A batch can also be `application/x-ndjson`, one message a line, or a Run; a body of `text/plain` is "
                "the text of one message. A Content-Type of `application/x-www-form-urlencoded` (curl's default), or "
                "none, counts as JSON.",
            ),
            "get": _operation(
                "messages",
                f"receive{of}",
                f"Read {where}: remove or lease messages",
                [*_reading(queues=not prefix), _IDEMPOTENT],
                {"200": RECEIVED, "204": NOTHING_THERE, "303": TO_THE_PAGE},
                ("invalid_input", "idempotency_mismatch", *STORAGE),
                more="Without `lease` the service removes the message. With `limit` the reply is an array. As runs, "
                "a leased read returns consecutive messages as one.",
            ),
            "head": _operation(
                "messages", f"head{inside}", "Refused, because a read removes messages", [], {}, ("method_not_allowed",)
            ),
        },
        f"{prefix}/messages/{handle}": _by_receipt_or_id() if prefix else _by_receipt(),
        f"{prefix}/messages/ack": {
            "parameters": at,
            "post": _operation(
                "messages", f"ack_many{inside}", "Ack many messages", [_IDEMPOTENT],
                {"200": json_of("What became of each.", ref("AckResult"))},
                (*READS_BODY, "idempotency_mismatch", *STORAGE), _body(ref("Receipts")),
            ),
        },
        f"{prefix}/messages/extend": {
            "parameters": at,
            "post": _operation(
                "messages", f"extend_many{inside}", "Extend many leases", [_IDEMPOTENT],
                {"200": json_of("What became of each.", ref("ExtendResult"))},
                (*READS_BODY, "idempotency_mismatch", *STORAGE), _body(ref("Extension")),
            ),
        },
    }  # fmt: skip


def _by_receipt() -> dict[str, Any]:
    settled = ("message_not_found", "stale_receipt", "idempotency_mismatch", *STORAGE)
    return {
        "parameters": [_RECEIPT],
        "delete": _operation(
            "messages", "ack", "Ack: remove the message", [_IDEMPOTENT], {"204": DONE}, ("invalid_input", *settled)
        ),
        "patch": _operation(
            "messages", "change_lease", "Extend, release or reject a message", [_IDEMPOTENT],
            {"200": json_of("The lease was extended.", ref("LeaseEnd")), "204": DONE},
            (*READS_BODY, *settled), _body(ref("LeaseChange")),
        ),
    }  # fmt: skip


def _by_receipt_or_id() -> dict[str, Any]:
    """Return one path for two routes of the service, because their templates would be the same."""
    either = "Digits are the id of a message, for administrators; anything else is a receipt."
    changed = (
        "queue_not_found", "message_not_found", "stale_receipt", "message_leased", "idempotency_mismatch", *STORAGE,
    )  # fmt: skip
    return {
        "parameters": [_QUEUE, _RECEIPT | {"name": "receipt_or_id", "description": either}],
        "get": _operation(
            "queues", "get_message", "Show a message by its id", [],
            {"200": json_of("The message in its envelope.", ref("PeekedMessage"))},
            ("invalid_input", "queue_not_found", "message_not_found", "method_not_allowed", *STORAGE),
            more="A receipt is 405.",
        ),
        "delete": _operation(
            "messages", "ack_or_delete_message", "Ack by receipt, or remove by id", [_IDEMPOTENT], {"204": DONE},
            ("invalid_input", *changed), more=either,
        ),
        "patch": _operation(
            "messages", "change_lease_or_message", "Extend, release or reject by receipt; reschedule or reject by id",
            [_IDEMPOTENT], {"200": json_of("The lease was extended.", ref("LeaseEnd")), "204": DONE},
            (*READS_BODY, *changed), _body(ref("ReceiptOrIdChange")), more=either,
        ),
    }  # fmt: skip


def _transactions() -> dict[str, Any]:
    answered = json_of("The commit is on disk.", ref("Transacted"), {"Retry-After": RETRY | {"required": False}})
    answered["content"][RUNS] = {"schema": ref("TransactedRuns")}
    problems = (
        *READS_BODY, "message_not_found", "stale_receipt", "idempotency_mismatch", "queue_full", *STORAGE,
    )  # fmt: skip
    transact = _operation(
        "messages", "transact", "Ack, send and receive in one commit", [_IDEMPOTENT], {"200": answered}, problems,
        _body(ref("Transaction")), "A `Retry-After` means that too many readers are waiting.",
    )  # fmt: skip
    return {"/transactions": {"post": transact}}


def _queues() -> dict[str, Any]:
    described = json_of("The queue.", ref("Queue"), {"ETag": {"required": True, "schema": {"type": "string"}}})
    if_match = {
        "name": "If-Match",
        "in": "header",
        "description": "Make the change only if the `ETag` is still this one, else 412.",
        "schema": {"type": "string", "examples": ['"3"', "*"]},
    }
    unknown = ("invalid_input", "queue_not_found", *STORAGE)
    once = "idempotency_mismatch"
    return {
        "/queues": {
            "get": _operation(
                "queues", "list_queues", "List the stats of every queue, page by page", _listing(),
                {"200": json_of("The queues, in order of name.", ref("QueueListing"))}, ("invalid_input", *STORAGE),
            )
        },
        "/queues/{queue}": {
            "parameters": [_QUEUE],
            "get": _operation("queues", "get_queue", "Show stats and settings", [], {"200": described}, unknown),
            "put": _operation(
                "queues", "put_queue", "Change settings; create the queue if needed", [if_match, _IDEMPOTENT],
                {"200": described}, (*READS_BODY, "precondition_failed", once, *STORAGE), _body(ref("SettingsChange")),
            ),
            "delete": _operation(
                "queues", "delete_queue", "Delete the queue and all in it", [_IDEMPOTENT], {"204": DONE},
                (*unknown, once),
            ),
        },
        "/queues/{queue}/peek": {
            "parameters": [_QUEUE],
            "get": _operation(
                "queues", "peek", "Show messages without changing them", _peeking(),
                {"200": list_or_lines("Messages in order of id.", listed(ref("PeekedMessage")), LINK)},
                ("invalid_input", *STORAGE),
                more="While more may follow, also behind an empty array, the reply has a `Link` to it. A search by "
                f"`text` or `reason` looks at {MAX_LOOKED:,} messages at most.",
            ),
        },
        "/queues/{queue}/reasons": {
            "parameters": [_QUEUE],
            "get": _operation(
                "queues", "list_reasons", "Count the dead letters in the queue, or from it, by their latest reason", [],
                {"200": json_of("The most frequent first.", ref("Reasons"))}, unknown,
                more=f"The service looks at the newest {MAX_LOOKED:,} at most.",
            ),
        },
        "/queues/{queue}/purge": {
            "parameters": [_QUEUE],
            "post": _operation(
                "queues", "purge", "Remove all messages that are in the queue now, or some of them", [_IDEMPOTENT],
                {"200": json_of("Done.", ref("Purged"))}, (*READS_BODY, once, *unknown),
                _body(ref("Purge"), required=False),
            ),
        },
        "/queues/{queue}/redrive": {
            "parameters": [_QUEUE],
            "post": _operation(
                "queues", "redrive", "Move dead letters back to where they came from", [_IDEMPOTENT],
                {"200": json_of("Done.", ref("Redriven"))}, (*READS_BODY, once, *unknown),
                _body(ref("Redrive"), required=False),
            ),
        },
    }  # fmt: skip


def _operations() -> dict[str, Any]:
    html = {"content": {"text/html": {"schema": {"type": "string"}}}, "headers": NO_STORE | GUARDED}
    start = {"description": "JSON; for `Accept: text/html` a page that shows the queues."} | html
    start["content"] = json_of("", ref("Index"))["content"] | html["content"]
    start["headers"] = NO_STORE | {name: {**header, "required": False} for name, header in GUARDED.items()}
    status = ref("Status")
    return {
        "/": {"get": _operation("operations", "index", "Show a guide to the service", [], {"200": start}, public=True)},
        "/docs": {
            "get": _operation(
                "operations", "docs", "Show this document as a page", [],
                {"200": {"description": "A page."} | html}, public=True,
            )
        },
        "/openapi.json": {
            "get": _operation(
                "operations", "openapi", "Return this document", [],
                {"200": json_of("OpenAPI 3.1.", {"type": "object"})}, public=True,
            )
        },
        "/health": {
            "get": _operation(
                "operations", "health", "Check that it is alive", [], {"200": json_of("Alive.", status)}, public=True
            )
        },
        "/ready": {
            "get": _operation(
                "operations", "ready", "Check that the service can commit a write", [],
                {"200": json_of("Ready.", status)}, STORAGE, public=True,
            )
        },
        "/metrics": {
            "get": _operation(
                "operations", "metrics", "Return the metrics for Prometheus", [],
                {"200": text_of("Prometheus' text format.")}, ("invalid_input", *STORAGE),
            )
        },
        "/status": {
            "get": _operation(
                "operations", "status", "Return the state of this node in a few numbers", [],
                {"200": json_of("Totals of all its workers since it started.", ref("NodeStatus"))},
                ("invalid_input", *STORAGE),
            )
        },
    }  # fmt: skip


def _operation(
    tag: str,
    operation: str,
    summary: str,
    parameters: list[Schema],
    answers: dict[str, Any],
    problems: tuple[str, ...] = (),
    body: Schema | None = None,
    more: str = "",
    public: bool = False,
) -> dict[str, Any]:
    codes = (*problems, *EVERYWHERE, *(() if public else ACCESS))
    described: dict[str, Any] = {"tags": [tag], "operationId": operation, "summary": summary}
    described |= {"description": more} if more else {}
    described |= {"parameters": parameters} if parameters else {}
    described |= {"requestBody": body} if body else {}
    described |= {"security": []} if public else {}
    for status in sorted({CODES[code][0] for code in codes}):
        name = OR.join(code for code in CODES if code in codes and CODES[code][0] == status)
        answers[str(status)] = {"$ref": RESPONSES + name}
    return described | {"responses": answers}


def _problems_of(paths: dict[str, Any]) -> set[str]:
    """Return the names of the problems that these paths refer to."""
    operations = [item for path in paths.values() for item in path.values() if isinstance(item, dict)]
    refs = [answer.get("$ref", "") for operation in operations for answer in operation["responses"].values()]
    return {found.removeprefix(RESPONSES) for found in refs if found}


def _reading(queues: bool) -> list[Schema]:
    several = {
        "name": "queue",
        "in": "query",
        "description": "Read from these queues, in this order of preference.",
        "schema": listed(QUEUE, 0, 96),  # a query has at most 100 parameters
    }
    query = {"lease": LEASE, "limit": LIMIT, "wait": WAIT, "recipient": RECIPIENT, "recipients": RECIPIENTS}
    return [_query(name, schema) for name, schema in query.items()] + ([several] if queues else [])


def _peeking() -> list[Schema]:
    id: Schema = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
    query: dict[str, Schema] = {
        "limit": LIMIT | {"default": 100},
        "after": id | {"description": "Only messages above this id."},
        "before": id | {"description": "Only messages below this id, the newest first."},
        "state": ref("State"),
        "key": name("Only messages of this key."),
        "text": name("Only messages whose text contains this, letter for letter.", MAX_SEARCH),
        "reason": name("Only messages whose latest `dead_letter_reason` is this.", MAX_REASON),
    }
    return [_query(name, schema) for name, schema in query.items()]


def _listing() -> list[Schema]:
    limit: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": MAX_PAGE}
    start = QUEUE | {"pattern": f"^({QUEUE_NAME.pattern})?$"}  # a form sends an empty value for none
    query: dict[str, Schema] = {
        "prefix": start | {"description": "Only queues whose names begin with this."},
        "after": start | {"description": "Only queues after this name: the `next` of the previous page."},
        "limit": limit | {"description": "At most this many queues."},
    }
    return [_query(name, schema) for name, schema in query.items()]


def _query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "schema": schema}


def _body(schema: Schema, required: bool = True) -> Schema:
    return {"required": required, "content": {JSON: {"schema": schema}}}


_SEND_BODY = _body({"anyOf": [ref("Message"), ref("Batch")]})
# Generators of clients fail on a second type of body, so the others are an extension.
_SEND_BODY[MORE_CONTENT] = {
    NDJSON: {"schema": {"type": "string", "description": "One message a line."}},
    TEXT: {"schema": {"type": "string", "description": "The text of one message."}},
    RUNS: {"schema": ref("Run")},
}
