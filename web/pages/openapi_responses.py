"""The responses of the operations in the OpenAPI document: values, nothing, and problems."""

from __future__ import annotations

from http import HTTPStatus

from web.native import problems
from web.native.request import JSON, NDJSON, RUNS
from web.native.responses import RETRY_AFTER
from web.pages.json_schema import Schema, listed, record, ref
from web.pages.schemas import QUEUE

# Every code of a problem: (status, when). Each operation lists the codes of its route.
CODES = {
    "invalid_input": (400, "a value breaks the rules; `field` and `index` name it"),
    "bad_request": (400, "the service cannot read the request"),
    "unauthenticated": (401, "the operator has set tokens, and the request has none or an unknown one"),
    "forbidden": (403, "the token does not allow this"),
    "cross_origin": (403, "a browser sent this for a page of another origin"),
    "prefetch": (403, "a browser prefetches"),
    "queue_not_found": (404, "no such queue"),
    "message_not_found": (404, "the receipt's message was settled, expired, purged or dead-lettered, or never existed"),
    "not_found": (404, "no such route"),
    "method_not_allowed": (405, "the route has other methods; `Allow` lists them"),
    "stale_receipt": (
        409,
        "leased again since; or, to be extended, released; or, in a transaction, gone",
    ),
    "message_leased": (409, "a worker holds the message, so you cannot change it by its id"),
    "precondition_failed": (412, "the settings have changed since the `ETag` was read"),
    "body_too_large": (413, "the body is over the limit"),
    "uri_too_long": (414, "the request line is too long"),
    "unsupported_media_type": (415, "the service does not accept the body's type or encoding"),
    "unknown_host": (421, "the service listens on loopback only, and the request's `Host` is a public name"),
    "idempotency_mismatch": (422, "the `Idempotency-Key` belongs to another request"),
    "queue_full": (429, "the write would exceed `max_messages` or `max_bytes`; nothing was stored"),
    "too_many_failures": (429, "the token is wrong, and many wrong ones came from this address"),
    "headers_too_large": (431, "a header, or all of them, are too large"),
    "internal_error": (500, "a fault of the service; `detail` has a reference to its log"),
    "busy": (503, "no write lock, database or memory for a large body in time; nothing was done"),
    "disk_full": (503, "no room for the write; nothing was done"),
    "interrupted": (
        503,
        "the request stopped after a part of it; `detail` reports what was done, and a retry continues",
    ),
    "unavailable": (503, "the storage failed; the outcome is unknown"),
}
ACCESS = ("unauthenticated", "forbidden", "too_many_failures")
EVERYWHERE = (
    "bad_request", "not_found", "cross_origin", "prefetch", "unknown_host", "uri_too_long", "headers_too_large",
    "internal_error",
)  # fmt: skip
STORAGE = ("busy", "disk_full", "interrupted", "unavailable")
READS_BODY = ("invalid_input", "body_too_large", "unsupported_media_type")

_TITLES = {code: title for _, code, title in problems.PROBLEMS.values()} | dict(problems.ROUTING.values())

PROBLEM_JSON = "application/problem+json"
MORE_CONTENT = "x-more-content"  # as `content`: media types of a body beside JSON
RESPONSES = "#/components/responses/"
OR = "_or_"
RETRY = {"description": "Seconds.", "required": True, "schema": {"type": "integer", "minimum": RETRY_AFTER}}
LINK: Schema = {"Link": {"description": 'To the next messages: `rel="next"`, relative.', "schema": {"type": "string"}}}
NO_STORE = {
    "Cache-Control": {"required": True, "schema": {"const": "no-store"}},
    "X-Request-Id": {"description": "The request's own, or a new one.", "schema": {"type": "string"}},
}


def problem(codes: list[str]) -> Schema:
    """Return a response with one of these codes, all of one status."""
    status = CODES[codes[0]][0]
    headers = dict(NO_STORE)
    if status in (429, 503):
        headers["Retry-After"] = RETRY
    if status == 405:
        headers["Allow"] = {"required": True, "schema": {"type": "string"}}
    if status == 401:
        headers["WWW-Authenticate"] = {"required": True, "schema": {"type": "string"}}
    return {
        "description": "\n".join(f"`{code}`: {CODES[code][1]}." for code in codes),
        "headers": headers,
        "content": {PROBLEM_JSON: {"schema": ref("Problem"), "examples": {code: _example(code) for code in codes}}},
    }


def _example(code: str) -> Schema:
    status, when = CODES[code]
    title = _TITLES.get(code, HTTPStatus(status).phrase)
    return {"value": {"type": "about:blank", "title": title, "status": status, "detail": when, "code": code}}


def json_of(description: str, schema: Schema, headers: Schema | None = None) -> Schema:
    return {
        "description": description,
        "headers": NO_STORE | (headers or {}),
        "content": {JSON: {"schema": schema}},
    }


def text_of(description: str) -> Schema:
    return {"description": description, "headers": NO_STORE, "content": {"text/plain": {"schema": {"type": "string"}}}}


def list_or_lines(description: str, schema: Schema, headers: Schema | None = None) -> Schema:
    """Return a response as JSON, or as one value a line for `Accept: application/x-ndjson`."""
    response = json_of(description, schema, headers)
    response["content"][NDJSON] = {"schema": {"type": "string"}}
    return response


RECEIVED = list_or_lines(
    "A message, or with `limit` an array.",
    {  # a generated client takes the first that fits, and a TakenMessage is any with a text
        "anyOf": [
            ref("LeasedMessage"),
            ref("TakenMessage"),
            listed(ref("LeasedMessage"), 1),
            listed(ref("TakenMessage"), 1),
        ]
    },
    {
        name: {"description": "For a single message.", "schema": schema}
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
    "description": "No message. With `Retry-After`, too many readers are waiting: retry after that many seconds.",
    "headers": NO_STORE | {"Retry-After": RETRY | {"required": False}},
}
TO_THE_PAGE = json_of(
    "The service redirects a browser that opens a read to the page of its queue.",
    record({"page": {"type": "string"}}, "page"),
    {"Location": {"required": True, "schema": {"type": "string"}}},
)
GUARDED = {"Content-Security-Policy": {"required": True, "schema": {"type": "string"}}}
