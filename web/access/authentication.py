"""Authentication: every route needs a right, and only a token gives one.

web/access/authorization.py checks what a token may do with which queue; this module refuses early, before a body is
read.
"""

from __future__ import annotations

import binascii
import ipaddress
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from functools import wraps
from hmac import compare_digest
from math import ceil
from typing import Any

from bottle import request

from web.access.tokens import ADMIN, METRICS, RECEIVE, SEND, Grant, Tokens, hash_of
from web.native.request import GRANT, Environ, WireError
from web.observability.access_log import rule_of

# The rights one of which each route needs; OPEN needs no token. A route without an entry is refused.
OPEN: frozenset[str] = frozenset()
_SEND, _RECEIVE, _ADMIN = frozenset({SEND}), frozenset({RECEIVE}), frozenset({ADMIN})
ANY_RIGHT = _SEND | _RECEIVE | _ADMIN
NEEDS = {
    "POST /messages": _SEND,
    "POST /queues/{queue}/messages": _SEND,
    "GET /messages": _RECEIVE,
    "GET /queues/{queue}/messages": _RECEIVE,
    "HEAD /messages": OPEN,  # always refused
    "HEAD /queues/{queue}/messages": OPEN,
    "DELETE /messages/{receipt}": _RECEIVE,
    "DELETE /queues/{queue}/messages/{receipt}": _RECEIVE,
    "PATCH /messages/{receipt}": _RECEIVE,
    "PATCH /queues/{queue}/messages/{receipt}": _RECEIVE,
    "POST /messages/ack": _RECEIVE,
    "POST /queues/{queue}/messages/ack": _RECEIVE,
    "POST /messages/extend": _RECEIVE,
    "POST /queues/{queue}/messages/extend": _RECEIVE,
    "GET /queues/{queue}/messages/{id}": _RECEIVE | _ADMIN,
    "DELETE /queues/{queue}/messages/{id}": _ADMIN,
    "PATCH /queues/{queue}/messages/{id}": _ADMIN,
    "POST /transactions": _SEND | _RECEIVE,  # web/access/authorization.py checks each part
    "GET /queues": ANY_RIGHT,
    "GET /queues/{queue}": ANY_RIGHT,
    "PUT /queues/{queue}": _ADMIN,
    "DELETE /queues/{queue}": _ADMIN,
    "GET /queues/{queue}/peek": _RECEIVE | _ADMIN,
    "GET /queues/{queue}/reasons": _RECEIVE | _ADMIN,
    "POST /queues/{queue}/purge": _ADMIN,
    "POST /queues/{queue}/redrive": _ADMIN,
    "GET /": OPEN,  # these three describe the service, not its contents
    "GET /docs": OPEN,
    "GET /openapi.json": OPEN,
    "GET /health": OPEN,
    "GET /ready": OPEN,
    "GET /metrics": frozenset({METRICS}),
    "GET /status": frozenset({METRICS, ADMIN}),
}

FAILURES = 20  # of one client in WINDOW, in one worker, before its wrong tokens get 429
WINDOW = 60.0  # seconds
CLIENTS = 10_000  # at most, to bound memory


class Unauthenticated(WireError):
    def __init__(self, detail: str = "this requires a token: Authorization: Bearer …", error: str = "") -> None:
        super().__init__(detail)
        # Not Basic: a browser would open its own dialog, and a client that sends Basic needs no challenge.
        self.headers = {"WWW-Authenticate": f'Bearer realm="queue_service"{error}'}


class Forbidden(WireError):
    def __init__(self, detail: str = "the token may not do this", queue: str | None = None) -> None:
        super().__init__(detail)
        self.queue = queue


class TooManyFailures(WireError):
    def __init__(self, wait: float = WINDOW) -> None:
        super().__init__("the token is wrong, and too many wrong ones came from this address")
        self.headers = {"Retry-After": str(ceil(wait))}


class Access:
    """The check of requests by their tokens."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._failures = _Failures()

    def admit(self, environ: Environ, needs: frozenset[str] | None) -> None:
        """Put the request's grant into its environ. Raises Unauthenticated, Forbidden, TooManyFailures."""
        grant = self._authenticate(environ)
        environ[GRANT] = grant
        if not needs or not needs & grant.rights:
            wanted = " or ".join(sorted(needs or ()))
            raise Forbidden(f"the token '{grant.name}' lacks the right {wanted}" if wanted else "no token allows this")

    def grant_named(self, name: str) -> Grant | None:
        """Return the grant of the token with this name, or None. Raises Unavailable."""
        return next((grant for grant in self._tokens.grants() if grant.name == name), None)

    def count_failure(self, environ: Environ) -> None:
        """Count a wrong token of this client. Raises TooManyFailures."""
        self._failures.add(environ.get("REMOTE_ADDR", ""))

    def _authenticate(self, environ: Environ) -> Grant:
        header = environ.get("HTTP_AUTHORIZATION")
        if header is None:
            raise Unauthenticated
        name, secret = _credentials(header)
        digest, found = hash_of(secret), None
        for grant in self._tokens.grants():
            if compare_digest(grant.digest, digest) and name in (None, grant.name):
                found = grant
        if found is None:
            self.count_failure(environ)
            raise Unauthenticated("the service does not know this token", ', error="invalid_token"')
        return found


class Guard:
    """A Bottle plugin that admits a request before its route runs, if the operator has set tokens."""

    name = "access"
    api = 2

    def __init__(self, access: Callable[[], Access | None]) -> None:
        self._access = access

    def apply(self, run: Callable[..., Any], route: Any) -> Callable[..., Any]:
        needs = NEEDS.get(f"{route.method} {rule_of(route)}")
        if needs == OPEN:
            return run

        @wraps(run)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            access = self._access()
            if access is not None:
                access.admit(request.environ, needs)
            return run(*args, **kwargs)

        return guarded


class _Failures:
    """Wrong tokens by client address, except loopback: a proxy there serves many clients, and counts by itself."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._counts: dict[str, tuple[int, float]] = {}  # by client: how many, and when they expire

    def add(self, client: str) -> None:
        """Count a failure. Raises TooManyFailures if the client already has FAILURES."""
        if not (network := _network(client)):
            return
        now = time.monotonic()
        with self._guard:
            count, until = self._counts.pop(network, (0, 0.0))
            if until <= now:
                count, until = 0, now + WINDOW
            if len(self._counts) >= CLIENTS:
                self._counts.pop(next(iter(self._counts)))  # the client with the oldest last failure
            self._counts[network] = (count + 1, until)
        if count >= FAILURES:
            raise TooManyFailures(until - now)


def _network(client: str) -> str:
    """Return what to count for an address: for IPv6 its /64, which belongs to one client; "" to count nothing."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:  # a UNIX socket's client has none
        return ""
    address = getattr(address, "ipv4_mapped", None) or address  # an IPv4 client of a dual-stack socket
    if address.is_loopback:
        return ""
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


def _credentials(header: str) -> tuple[str | None, str]:
    """Return name (None for Bearer) and secret; an invalid header has the secret "", which no token has."""
    scheme, _, rest = header.partition(" ")
    if scheme.lower() == "bearer":
        return None, rest.strip()
    if scheme.lower() == "basic":
        try:
            name, _, secret = b64decode(rest.strip(), validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None, ""
        return name, secret
    return None, ""
