"""Error responses: the one table from an exception to its status and code."""

from __future__ import annotations

import logging
import re

from bottle import HTTPError, request

from storage import errors
from web.access import authentication
from web.native import responses
from web.native.request import BadRequest, BodyTooLarge, CrossOrigin, Prefetch, UnknownHost, UnsupportedMediaType
from web.native.responses import Response
from web.observability import access_log

_log = logging.getLogger("queue_service")

# (status, code, title); the nearest class of an exception's hierarchy applies.
PROBLEMS: dict[type[Exception], tuple[int, str, str]] = {
    errors.InvalidInput: (400, "invalid_input", "The request is not valid"),
    BadRequest: (400, "bad_request", "The request cannot be read"),
    CrossOrigin: (403, "cross_origin", "A page of another origin may not do this"),
    Prefetch: (403, "prefetch", "A browser may not prefetch this"),
    authentication.Unauthenticated: (401, "unauthenticated", "A token is required"),
    authentication.Forbidden: (403, "forbidden", "The token may not do this"),
    errors.QueueNotFound: (404, "queue_not_found", "No such queue"),
    errors.MessageNotFound: (404, "message_not_found", "No such message"),
    errors.StaleReceipt: (409, "stale_receipt", "The receipt is stale"),
    errors.MessageLeased: (409, "message_leased", "The message is leased"),
    errors.PreconditionFailed: (412, "precondition_failed", "The settings have changed"),
    BodyTooLarge: (413, "body_too_large", "The body is too large"),
    UnsupportedMediaType: (415, "unsupported_media_type", "The body's type is not supported"),
    UnknownHost: (421, "unknown_host", "The service does not answer to this host name"),
    errors.IdempotencyMismatch: (422, "idempotency_mismatch", "The Idempotency-Key belongs to another request"),
    errors.QueueFull: (429, "queue_full", "The queue is full"),
    authentication.TooManyFailures: (429, "too_many_failures", "Too many wrong tokens"),
    errors.Busy: (503, "busy", "The service is busy"),
    errors.DiskFull: (503, "disk_full", "The disk is full"),
    errors.Interrupted: (503, "interrupted", "The request stopped after a part of it"),
    errors.Unavailable: (503, "unavailable", "The service cannot do this now"),
    Exception: (500, "internal_error", "Internal error"),
}
_BARE_ID = re.compile(r"/messages/([0-9]{1,19})")
ROUTING = {404: ("not_found", "No such route"), 405: ("method_not_allowed", "Method not allowed")}


def problem_of(fault: Exception) -> Response:
    """Return the response for an exception. Log an exception outside the table, with a reference."""
    status, code, title = next(PROBLEMS[kind] for kind in type(fault).__mro__ if kind in PROBLEMS)
    if status == 500:
        reference = request.environ[access_log.REQUEST_ID]
        _log.error("internal error %s", reference, exc_info=fault)
        detail = f"see the service's log for the reference {reference}"
    else:
        detail = str(fault) + (_by_id() if isinstance(fault, errors.MessageNotFound | errors.InvalidInput) else "")
    more = {name: getattr(fault, name, None) for name in ("field", "index", "queue")}
    return responses.problem(status, code, title, detail, headers=getattr(fault, "headers", None), **more)


def problem_of_routing(error: HTTPError) -> Response:
    """Return the response if Bottle found no route for a request (or, for 500, failed itself)."""
    allow = _allow(error.headers.get("Allow"))
    if allow and request.method == "OPTIONS":
        return responses.nothing({"Allow": allow})
    if error.status_code not in ROUTING:
        return problem_of(error.exception or error)
    code, title = ROUTING[error.status_code]
    detail = (f"this route takes {allow.replace(',', ', ')}" if allow else title.lower()) + _by_id()
    return responses.problem(error.status_code, code, title, detail, headers={"Allow": allow} if allow else {})


def _by_id() -> str:
    """A hint for a client that takes the id of a message for a receipt."""
    found = _BARE_ID.fullmatch(request.path)
    return f"; a message is found by its id at /queues/default/messages/{found[1]}" if found else ""


def _allow(found: str | None) -> str:
    """Return the methods for Allow: HEAD goes with GET, unless a route of its own refuses it."""
    methods = set(found.split(",")) if found else set()
    methods ^= {"HEAD"} if methods & {"GET", "HEAD"} else set()
    return ",".join(sorted(methods))
