"""One call of an action."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from storage.errors import Busy, PreconditionFailed
from storage.model import Queue
from storage.store import Store
from web.native.application import Application
from web.native.request import Environ
from web.sqs.errors import missing
from web.sqs.names import DEFAULT_REGION, name_in_url, url_of
from web.sqs.parameters import Parameters
from web.sqs.protocols.reply import WireProtocol
from web.sqs.signatures import Signature

Result = dict[str, Any]
DONE: Result = {}
_EDITS = 100  # attempts
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")


class Call(NamedTuple):
    action: str
    protocol: WireProtocol
    parameters: Parameters
    store: Store  # limited to what the caller may do
    service: Application
    environ: Environ
    token: str | None  # the name of the caller's token

    @property
    def queue(self) -> str:
        """Return the name of the queue in QueueUrl. Raises SqsError."""
        return name_in_url(self.parameters.required("QueueUrl"))

    @property
    def logged_queue(self) -> str:
        """Return the queue that the access log names; "-" if the request names none by name or URL."""
        named = self.parameters.text("QueueUrl") or self.parameters.text("QueueName") or "-"
        return named.rstrip("/").rpartition("/")[2]

    @property
    def trace(self) -> str | None:
        return self.environ.get("HTTP_X_AMZN_TRACE_ID")

    @property
    def region(self) -> str:
        signature = Signature.of(self.environ)
        return signature.scope.region if signature else DEFAULT_REGION

    def url_of(self, queue: str) -> str:
        """Return a queue's URL, with the scheme and the host that the client used."""
        environ = self.environ
        scheme = "https" if environ.get("HTTP_X_FORWARDED_PROTO") == "https" else environ["wsgi.url_scheme"]
        host = environ.get("HTTP_HOST", "")
        if not _HOST.fullmatch(host):
            host = f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"
        return url_of(f"{scheme}://{host}", queue)


def edit(store: Store, queue: str, change: Callable[[Queue], Mapping[str, Any]]) -> None:
    """Change settings by their present value. Raises QueueNotFound, or Busy if others change them too often."""
    for _ in range(_EDITS):
        found = store.queue(queue)
        changes = change(found)
        if not changes:
            return
        try:
            store.configure(queue, changes, found.version)
        except PreconditionFailed:  # another client changed them meanwhile
            continue
        return
    raise Busy


def required_list(call: Call, name: str) -> list[str]:
    values = call.parameters.texts(name)
    if not values:
        raise missing(name)
    return values
