"""What operations of the OpenAPI document answer: values, nothing, and problems."""

from __future__ import annotations

from doors.answer import RETRY_AFTER
from doors.schemas import QUEUE, Schema, listed, record, ref
from doors.wire import JSON, NDJSON, RUNS

# Every code a problem may have: (status, when). The codes a route may answer stand at its operation.
CODES = {
    "invalid_input": (400, "a value is outside the rules; `field` and `index` say where"),
    "bad_request": (400, "the request cannot be read"),
    "unauthenticated": (401, "the operator has set tokens, and the request has none that is known"),
    "forbidden": (403, "the token does not allow this"),
    "cross_origin": (403, "a page of another origin asks, in a browser"),
    "prefetch": (403, "a browser fetches it ahead"),
    "queue_not_found": (404, "there is no such queue"),
    "message_not_found": (404, "the receipt's message is gone, or never was"),
    "not_found": (404, "there is no such route"),
    "method_not_allowed": (405, "the route has other methods; `Allow` lists them"),
    "stale_receipt": (409, "leased again since; or to be extended after a release; or in a transaction, gone"),
    "message_leased": (409, "the message is leased, so it cannot be changed by its id"),
    "precondition_failed": (412, "the settings have changed since the `ETag` was read"),
    "body_too_large": (413, "the body is over the limit"),
    "uri_too_long": (414, "the request line is too long"),
    "unsupported_media_type": (415, "the body's type or encoding is not taken"),
    "unknown_host": (421, "the service listens on loopback and is called by another name"),
    "idempotency_mismatch": (422, "the `Idempotency-Key` belongs to another request"),
    "queue_full": (429, "`max_messages` or `max_bytes` would be exceeded; nothing was stored"),
    "too_many_failures": (429, "too many requests with wrong tokens came from this address, this one among them"),
    "headers_too_large": (431, "a header, or all of them, are too large"),
    "internal_error": (500, "a fault of the service; `detail` has a reference into its log"),
    "busy": (503, "the write lock, or room for a large body, could not be had in time; nothing was done"),
    "disk_full": (503, "there is no room for the write; nothing was done"),
    "interrupted": (
        503,
        "cut off after a part of it; `detail` says what was done, and repeating it goes on",
    ),
    "unavailable": (503, "the storage failed; whether it was done is not known"),
}
ACCESS = ("unauthenticated", "forbidden", "too_many_failures")
EVERYWHERE = (
    "bad_request", "not_found", "cross_origin", "prefetch", "unknown_host", "uri_too_long", "headers_too_large",
    "internal_error",
)  # fmt: skip
STORAGE = ("busy", "disk_full", "interrupted", "unavailable")
READS_BODY = ("invalid_input", "body_too_large", "unsupported_media_type")

RESPONSES = "#/components/responses/"
OR = "_or_"
RETRY = {"description": "Seconds.", "required": True, "schema": {"type": "integer", "minimum": RETRY_AFTER}}
NO_STORE = {
    "Cache-Control": {"required": True, "schema": {"const": "no-store"}},
    "X-Request-Id": {"description": "The request's own, or a new one.", "schema": {"type": "string"}},
}


def problem(codes: list[str]) -> Schema:
    """An answer with one of these codes, all of one status."""
    status = CODES[codes[0]][0]
    headers = dict(NO_STORE)
    if status in (429, 503):
        headers["Retry-After"] = RETRY
    if status == 405:
        headers["Allow"] = {"required": True, "schema": {"type": "string"}}
    if status == 401:
        headers["WWW-Authenticate"] = {"required": True, "schema": {"type": "string"}}
    narrowed = {"properties": {"status": {"const": status}, "code": {"enum": codes}}}
    return {
        "description": "\n".join(f"`{code}`: {CODES[code][1]}." for code in codes),
        "headers": headers,
        "content": {"application/problem+json": {"schema": {"allOf": [ref("Problem"), narrowed]}}},
    }


def json_of(description: str, schema: Schema, headers: Schema | None = None) -> Schema:
    return {
        "description": description,
        "headers": NO_STORE | (headers or {}),
        "content": {JSON: {"schema": schema}},
    }


def text_of(description: str) -> Schema:
    return {"description": description, "headers": NO_STORE, "content": {"text/plain": {"schema": {"type": "string"}}}}


def list_or_lines(description: str, schema: Schema, headers: Schema | None = None) -> Schema:
    """JSON, or one value a line for who accepts application/x-ndjson."""
    told = json_of(description, schema, headers)
    told["content"][NDJSON] = {"schema": {"type": "string"}}
    return told


RECEIVED = list_or_lines(
    "A message, or with `limit` an array.",
    {
        "anyOf": [
            ref("TakenMessage"),
            ref("LeasedMessage"),
            listed(ref("TakenMessage"), 1),
            listed(ref("LeasedMessage"), 1),
        ]
    },
    {
        name: {"description": "Of a single message.", "schema": schema}
        for name, schema in {
            "Message-Id": {"type": "string"},
            "Message-Queue": QUEUE,
            "Message-Sent-At": {"type": "string", "format": "date-time"},
        }.items()
    },
)
RECEIVED["content"][RUNS] = {"schema": listed({"anyOf": [ref("LeasedMessage"), ref("LeasedRun")]}, 1)}
DONE = {"description": "Done.", "headers": NO_STORE}
NOTHING_THERE = {
    "description": "Nothing there. With `Retry-After` it came early: as many readers wait as the service allows.",
    "headers": NO_STORE | {"Retry-After": RETRY | {"required": False}},
}
TO_THE_PAGE = json_of(
    "A browser that opens a read is led to the page of its queue.",
    record({"page": {"type": "string"}}, "page"),
    {"Location": {"required": True, "schema": {"type": "string"}}},
)
GUARDED = {"Content-Security-Policy": {"required": True, "schema": {"type": "string"}}}
