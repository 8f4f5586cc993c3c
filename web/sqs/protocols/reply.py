"""What the protocols of SQS have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from web.native.request import Environ
from web.sqs.errors import SqsError


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class WireProtocol(Protocol):
    """A way to write requests and replies. Documents are as the JSON protocol writes them."""

    def request(self, environ: Environ, body: bytes) -> tuple[str, Mapping[str, Any]]:
        """Return the action and the document of a request. The action is "" if there is none. Raises SqsError."""

    def without_action(self) -> Reply | None:
        """Return the reply to a request without an action, or None if that is a native request."""

    def clean(self, text: str) -> str:
        """Return a text as a reply can hold it."""

    def unknown_action(self, action: str) -> SqsError: ...

    def reply(self, action: str, result: Mapping[str, Any], request_id: str) -> Reply:
        """Return the reply to a successful action."""

    def error(self, fault: SqsError, request_id: str) -> Reply:
        """Return the reply for an error."""
