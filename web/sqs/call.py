"""One call of an action."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from storage.errors import Busy, PreconditionFailed
from storage.model import Queue
from storage.store import Store
from web.sqs.errors import missing
from web.sqs.names import name_in_url, url_of
from web.sqs.parameters import Parameters
from web.sqs.protocols.reply import WireProtocol

Result = dict[str, Any]
DONE: Result = {}
_EDITS = 100  # attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    action: str
    protocol: WireProtocol
    parameters: Parameters
    store: Store  # limited to what the caller may do
    base: str  # the scheme and the host that the client used
    region: str
    token: str | None  # the name of the caller's token
    trace: str | None  # the header X-Amzn-Trace-Id
    present: Callable[[], bool]  # whether the client is still connected
    pause: Callable[[float], object]  # let others run for so many seconds
    build: Callable[[Callable[[], Result]], Result]  # make a reply that may be long

    @property
    def queue(self) -> str:
        """Return the name of the queue in QueueUrl. Raises SqsError."""
        return name_in_url(self.parameters.required("QueueUrl"))

    @property
    def logged_queue(self) -> str:
        """Return the queue that the access log names; "-" if the request names none by name or URL."""
        named = self.parameters.text("QueueUrl") or self.parameters.text("QueueName") or "-"
        return named.rstrip("/").rpartition("/")[2]

    def url_of(self, queue: str) -> str:
        return url_of(self.base, queue)


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
