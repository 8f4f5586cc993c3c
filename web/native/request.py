"""Read HTTP strictly: headers, bodies and query strings. Refuse what is not plainly valid."""

from __future__ import annotations

import hashlib
import re
import select
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from storage.errors import InvalidInput, StoreError
from storage.model import IdempotencyKey

Environ = dict[str, Any]

JSON, NDJSON, TEXT = "application/json", "application/x-ndjson", "text/plain"
RUNS = "application/vnd.queue-service.runs+json"  # plain messages in columns

GRANT = "queue_service.grant"  # in the environ: the Grant of an admitted request

PIECE = 65_536  # bytes of a body read at once
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,20})?(e-[0-9]{1,3})?")  # accepts every float as Python prints it
_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class WireError(StoreError):
    """The HTTP request is invalid, before the store is called. `index`: the line of a batch."""

    index: int | None = None


class BadRequest(WireError):
    pass


class BodyTooLarge(WireError):
    pass


class UnsupportedMediaType(WireError):
    pass


class CrossOrigin(WireError):
    pass


class Prefetch(WireError):
    pass


class UnknownHost(WireError):
    pass


class Query:
    """A query string. Each method removes the parameter it returns; `done` refuses the rest."""

    def __init__(self, raw: str) -> None:
        self._values: dict[str, list[str]] = {}
        if not raw:
            return
        if _BROKEN_PERCENT.search(raw) or not raw.isascii():
            raise InvalidInput("the query must be percent-encoded UTF-8")
        try:
            pairs = parse_qsl(raw, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=100)
        except ValueError:  # UnicodeDecodeError too
            raise InvalidInput("the query must have the form name=value&… in percent-encoded UTF-8") from None
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def many(self, name: str) -> list[str]:
        return self._values.pop(name, [])

    def one(self, name: str) -> str | None:
        values = self.many(name)
        if len(values) > 1:
            raise InvalidInput(f"'{name}' is given more than once", field=name)
        return values[0] if values else None

    def number(self, name: str, least: float, most: float) -> float | None:
        value = self.one(name)
        if value is None:
            return None
        if not _NUMBER.fullmatch(value) or not least <= float(value) <= most:
            raise InvalidInput(f"'{name}' must be a number from {least:g} to {most:g}", field=name)
        return float(value)

    def number_or(self, name: str, least: float, most: float, word: str) -> float | str | None:
        """Return a number, or `word`, or None if the parameter is missing."""
        if self._values.get(name) == [word]:
            return self.one(name)
        return self.number(name, least, most)

    def whole(self, name: str, least: int, most: int) -> int | None:
        value = self.one(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdigit() and len(value) < 20 and least <= int(value) <= most):
            raise InvalidInput(f"'{name}' must be a whole number from {least} to {most}", field=name)
        return int(value)

    def done(self) -> None:
        for name in self._values:
            raise InvalidInput(f"unknown parameter {name[:128]!r}", field=name[:128])


def read_body(environ: Environ, limit: int, grow: Callable[[int], None] = lambda more: None) -> bytes:
    """Return the whole body, of at most `limit` bytes; call `grow` to reserve memory for each piece.

    Raises BadRequest, BodyTooLarge, UnsupportedMediaType. Bottle would accept a short body, and spool a long one.
    """
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise UnsupportedMediaType("a body must not have a Content-Encoding")
    length = environ.get("CONTENT_LENGTH") or None
    if length is not None and not (length.isascii() and length.isdigit()):
        raise BadRequest("the Content-Length must be a number")
    if length is not None and int(length) > limit:
        raise BodyTooLarge(f"a body has at most {limit} bytes")
    if environ.get("HTTP_TRANSFER_ENCODING", "chunked").lower() != "chunked":  # "gzip, chunked" passes gunicorn
        raise BadRequest("the Transfer-Encoding must be chunked")
    if length is None and "HTTP_TRANSFER_ENCODING" not in environ:
        return b""
    wanted = limit + 1 if length is None else int(length)
    body = _read(environ["wsgi.input"].read, wanted, grow)
    if length is None and len(body) > limit:
        raise BodyTooLarge(f"a body has at most {limit} bytes")
    if length is not None and len(body) < wanted:
        raise BadRequest("the body is shorter than its Content-Length")
    return body


def read_idempotency_key(environ: Environ, body: bytes = b"") -> IdempotencyKey | None:
    """Return the Idempotency-Key with a digest of the request, or None. Each token has its own keys."""
    key = environ.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return None
    if not IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidInput("an Idempotency-Key must be 1 to 255 visible ASCII characters", field="Idempotency-Key")
    digest = hashlib.sha256()
    for part in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "CONTENT_TYPE"):
        digest.update(environ.get(part, "").encode() + b"\0")
    if "HTTP_IF_MATCH" in environ:
        digest.update(environ["HTTP_IF_MATCH"].encode() + b"\0")
    digest.update(body)
    grant = environ.get(GRANT)
    return IdempotencyKey(key if grant is None else f"{grant.name} {key}", digest.digest())


def holder(environ: Environ) -> str:
    """Return the name of the request's token, else the client's address; "" if unknown."""
    grant = environ.get(GRANT)
    name: str = grant.name if grant else environ.get("REMOTE_ADDR", "")
    return name


def connection_check(environ: Environ) -> Callable[[], bool]:
    """Return a function that checks whether the client is still connected; always true without gunicorn's socket."""
    sock = environ.get("gunicorn.socket")
    if sock is None:
        return lambda: True
    poll = select.poll()
    poll.register(sock, getattr(select, "POLLRDHUP", select.POLLHUP) | select.POLLHUP | select.POLLERR)
    return lambda: not poll.poll(0)


def wanted(environ: Environ, *kinds: str) -> str:
    """Return the first of these media types that the client accepts by name, else JSON."""
    accept = environ.get("HTTP_ACCEPT", "")
    return next((kind for kind in kinds if kind in accept), JSON)


def wants_html(environ: Environ) -> bool:
    """Return whether the client accepts HTML by name, as browsers do; curl accepts anything."""
    return "text/html" in environ.get("HTTP_ACCEPT", "")


def _read(read: Callable[[int], bytes], wanted: int, grow: Callable[[int], None]) -> bytes:
    """Return up to `wanted` bytes, read in pieces, so that a declared length alone takes no memory."""
    body = bytearray()
    while wanted and (piece := _read_piece(read, min(wanted, PIECE))):
        grow(len(piece))
        body += piece
        wanted -= len(piece)
    return bytes(body)


def _read_piece(read: Callable[[int], bytes], size: int) -> bytes:
    try:
        return read(size)
    except Exception as fault:  # the client stalled or disconnected, or sent bad chunks (gunicorn's own exceptions)
        raise BadRequest("the body is incomplete") from fault


def media_type(environ: Environ) -> str:
    """Return the body's type; curl's default form type, and none, count as JSON. Raises UnsupportedMediaType."""
    return _media_type(environ.get("CONTENT_TYPE", ""))


@lru_cache(maxsize=64)
def _media_type(given: str) -> str:
    kind, _, parameters = given.lower().partition(";")
    kind = kind.strip()
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]*)", parameters)
    if charset and charset[1] not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType("the charset must be UTF-8")
    if kind in ("", "application/x-www-form-urlencoded"):
        return JSON
    if kind not in (JSON, NDJSON, TEXT, RUNS):
        raise UnsupportedMediaType(f"the Content-Type must be {JSON}, {NDJSON}, {TEXT} or {RUNS}")
    return kind


def utf8(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadRequest("the body is not UTF-8") from None
