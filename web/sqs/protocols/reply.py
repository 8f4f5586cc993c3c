"""What the protocols of SQS have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from web.native.request import Environ
from web.sqs.errors import SqsError

WHOLE = 1_048_576  # characters of a reply that is made before it is sent


class Reply(NamedTuple):
    status: int
    content_type: str
    body: Iterable[bytes]
    length: int  # bytes of the body
    headers: Mapping[str, str] = MappingProxyType({})

    @classmethod
    def of(cls, status: int, content_type: str, text: str, headers: Mapping[str, str] = MappingProxyType({})) -> Reply:
        body = _encoded(text)
        return cls(status, content_type, [body], len(body), headers)

    @classmethod
    def of_pieces(cls, status: int, content_type: str, pieces: Callable[[], Iterable[str]]) -> Reply:
        """Return a reply of these pieces. A large one is encoded while it is sent, because it may be six times as long.

        Its messages stay in memory meanwhile, and each is encoded by itself.
        """
        some, size = [], 0
        for piece in pieces():
            some.append(piece)
            size += len(piece)
            if size > WHOLE:
                large = _LargeBody(pieces)
                return cls(status, content_type, large, sum(map(len, large)))
        return cls.of(status, content_type, "".join(some))


class _LargeBody:
    def __init__(self, pieces: Callable[[], Iterable[str]]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return map(_encoded, self._pieces())

    def close(self) -> None:
        """Free the messages."""
        self._pieces = tuple


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate quoted from a request


class WireProtocol(Protocol):
    """A way to write requests and replies. Documents are as the JSON protocol writes them."""

    is_form: bool  # a request's body is a form

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
