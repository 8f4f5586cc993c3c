"""Read plain requests by one strict pattern, and build their replies in one piece.

The pattern accepts only requests that are certainly valid. gunicorn's parser reads or refuses all others.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from enum import Enum, auto
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from gunicorn import SERVER

from web.native.decoding import structure
from web.native.request import Environ

MOST_HEAD = 8_190  # bytes: gunicorn's limit for a single field
MOST_FIELDS = 100
MOST = 65_536  # bytes of a request
MUCH = 256  # values of a body that take long to decode
MANY = 16  # messages of a read, or values of a body, whose transaction takes long

_LINE = re.compile(r"(GET|POST|PUT|PATCH|DELETE|HEAD|OPTIONS) (/[!-\"$->@-~]*)(?:\?([!-\"$-~]*))? HTTP/1\.1")
_FIELDS = re.compile(r"((?:[!#$%&'*+\-.^`|~0-9A-Za-z]+:[\t -~]*\r\n)+)\r\n")
_BEGINS = re.compile(_LINE.pattern.encode() + rb"\r\n")
_PART_OF_LINE = re.compile(rb"[A-Z]{1,7}(?: [ -~]*)?\r?")
_HOST = re.compile(r"[0-9A-Za-z.\-_:\[\]]+")
_LENGTH = re.compile(r"[0-9]{1,10}")
_UNPLAIN = {"HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "HTTP_UPGRADE", "HTTP_HTTP2_SETTINGS", "HTTP_TRAILER", "HTTP_TE"}

# Routes whose requests take a few tenths of a millisecond, unless they carry a batch.
_LIGHT = re.compile(
    r"/health|/transactions|(?:/queues/[^/]+)?/messages|/messages/[^/]+|/queues/[^/]+/messages/(?![0-9]+$)[^/]+"
)
_LIGHT_ACTION = re.compile(r"AmazonSQS\.(?:SendMessage|ReceiveMessage|DeleteMessage|ChangeMessageVisibility)(?:Batch)?")
_LIMIT = re.compile(r"(?:^|&)limit=([0-9]{1,9})(?:&|$)")


def may_begin(received: bytes) -> bool:
    """Return whether this may be the beginning of a plain request's head."""
    if len(received) > MOST_HEAD:
        return False
    return (_BEGINS.match(received) if b"\r\n" in received else _PART_OF_LINE.fullmatch(received)) is not None


def read_head(head: bytes) -> Environ | None:
    """Return the WSGI environ of a plain request's head; None for any other head."""
    line, _, fields = head.decode("latin-1").partition("\r\n")
    match, read = _LINE.fullmatch(line), _read_fields(fields)
    if match is None or read is None:
        return None
    method, path, query = match.groups()
    if path.startswith("//"):
        return None
    environ = read.copy()
    environ["REQUEST_METHOD"] = method
    environ["RAW_URI"] = path if query is None else f"{path}?{query}"
    environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
    environ["QUERY_STRING"] = query or ""
    return environ


@lru_cache(maxsize=128)  # a client sends mostly the same fields
def _read_fields(fields: str) -> Environ | None:
    """Return the part of the environ that the fields of a head make; None if they are not plain."""
    match = _FIELDS.fullmatch(fields)
    if match is None:
        return None
    environ: Environ = {}
    lines = match[1].split("\r\n", MOST_FIELDS + 1)
    lines.pop()
    for line in lines:
        name, _, value = line.partition(":")
        key = name.upper().replace("-", "_")
        key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
        if key in environ or key in _UNPLAIN:
            return None
        environ[key] = value.strip(" \t")
    if len(lines) > MOST_FIELDS or not _HOST.fullmatch(environ.get("HTTP_HOST", "")):
        return None
    if environ.get("HTTP_CONNECTION", "close").lower() not in ("close", "keep-alive"):
        return None
    return environ if _LENGTH.fullmatch(environ.get("CONTENT_LENGTH", "0")) else None


class Weight(Enum):
    """The time that a request takes, apart from its waits."""

    LIGHT = auto()  # the loop runs the request and its transaction
    HEAVY = auto()  # the loop runs the request, and a thread its transaction
    LONG = auto()  # a thread runs the request


def weigh(environ: Environ, body: bytes) -> Weight:
    path, kind, values = environ["PATH_INFO"], environ.get("CONTENT_TYPE", ""), structure(body)
    if environ["REQUEST_METHOD"] == "POST" and (action := environ.get("HTTP_X_AMZ_TARGET")) is not None:
        # An action has ten messages at most, however many values describe them.
        return Weight.LIGHT if values <= MUCH and _LIGHT_ACTION.fullmatch(action) else Weight.LONG
    if values > MUCH or not _LIGHT.fullmatch(path):
        return Weight.LONG
    if path.endswith("/messages") and (body.lstrip().startswith(b"[") or "ndjson" in kind or "runs" in kind):
        return Weight.LONG
    limit = _LIMIT.search(environ["QUERY_STRING"])
    is_heavy = values > MANY or (limit is not None and int(limit[1]) > MANY)
    return Weight.HEAVY if is_heavy else Weight.LIGHT


class Reply(NamedTuple):
    """`begin` is sent at once. `rest` is made while it is sent, and closed afterwards; None: there is no rest."""

    begin: bytes
    rest: Iterable[bytes] | None = None


def answer(app: Callable[..., Iterable[bytes]], environ: Environ, closes: Callable[[], bool]) -> Reply:
    """Return the reply to a request. `closes` returns whether its connection closes afterwards."""
    begun: list[Any] = []

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        begun[:] = status, headers

    content = app(environ, start)
    status, headers = begun
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if fields.count("\n") > len(headers) or fields.count("\r") > len(headers):
        raise ValueError("a line break in a header of a reply")
    connection = "close" if closes() else "keep-alive"
    head = (
        f"{environ['SERVER_PROTOCOL']} {status}\r\nServer: {SERVER}\r\nDate: {_date(int(time.time()))}\r\n"
        f"Connection: {connection}\r\n{fields}\r\n"
    ).encode("latin-1")
    return Reply(head + b"".join(content)) if isinstance(content, list) else Reply(head, content)


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
