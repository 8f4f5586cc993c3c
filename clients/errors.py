"""The exceptions of a client. An error that the service reports carries its problem document (RFC 9457).

QueueError
├── Closed                  the client was closed before the call; nothing was done
├── Unreachable             no usable reply within `retry_for`; the service may have done the request
└── ProblemError            the service answered, and refused
    ├── BadRequest          400, 405, 411, 413, 415, 422: a retry of this request cannot succeed
    ├── NotAllowed
    │   ├── Unauthenticated 401: no token was sent, or one that the service does not know
    │   ├── Forbidden       403: the token does not allow this
    │   └── TooManyFailures 429: this address sent too many wrong tokens; try again later
    ├── NotFound            404: no such queue or message
    ├── StaleReceipt        409: the lease ended or was released, and another reader may have the message
    ├── MessageLeased       409: a reader has the message, so it cannot be changed by its id
    ├── PreconditionFailed  412: the settings changed since they were read
    ├── QueueFull           429: nothing was stored within `retry_for`
    └── Unavailable         5xx for all of `retry_for`; if `code` is busy or disk_full, nothing was done;
                            else `detail` says what was done, if that is known
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class QueueError(Exception):
    """The base of all errors of a client; `str()` of it is one sentence."""


class Closed(QueueError):
    """The client was closed before the call."""


class Unreachable(QueueError):
    """No usable reply came within `retry_for`. The service may have done the request."""


class ProblemError(QueueError):
    """The service refused. `status` and `code` are stable; `field`, `index` and `queue` say where it applies."""

    def __init__(self, status: int, document: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        self.document = document
        self.type = str(document.get("type", "about:blank"))
        self.title = str(document.get("title", f"HTTP {status}"))
        self.detail = str(document.get("detail", ""))
        self.code = str(document.get("code", ""))
        self.field: str | None = document.get("field")
        self.index: int | None = document.get("index")
        self.queue: str | None = document.get("queue")
        self.retry_after = retry_after
        super().__init__(self.detail or self.title)


class BadRequest(ProblemError):
    pass


class NotAllowed(ProblemError):
    pass


class Unauthenticated(NotAllowed):
    pass


class Forbidden(NotAllowed):
    pass


class TooManyFailures(NotAllowed):
    pass


class NotFound(ProblemError):
    pass


class StaleReceipt(ProblemError):
    pass


class MessageLeased(ProblemError):
    pass


class PreconditionFailed(ProblemError):
    pass


class QueueFull(ProblemError):
    pass


class Unavailable(ProblemError):
    pass


_BY_STATUS: dict[int, type[ProblemError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: StaleReceipt,
    412: PreconditionFailed,
    429: QueueFull,
}
_BY_CODE: dict[str, type[ProblemError]] = {"too_many_failures": TooManyFailures, "message_leased": MessageLeased}


def problem(status: int, body: bytes, retry_after: float | None) -> ProblemError:
    """Return the exception for an error reply. The detail quotes a body that is no problem document."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": f"HTTP {status}: {body[:200].decode('utf-8', 'replace')!r}"}
    kind = _BY_STATUS.get(status, Unavailable if status >= 500 else BadRequest)
    kind = _BY_CODE.get(str(document.get("code")), kind)
    if not 300 <= status <= 599:
        kind = ProblemError
    return kind(status, document, retry_after)
