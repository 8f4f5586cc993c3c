"""Who asks, and whether he may: every route needs a right, and only a token gives one.

What a token may do with which queue is held in doors/granted.py, where every verb passes; here it is refused early,
before a body is read.
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

from doors.tokens import ADMIN, METRICS, RECEIVE, SEND, Grant, Tokens, hash_of
from doors.watch import rule_of
from doors.wire import GRANT, Environ, WireError

# What each route needs: a token with one of these rights, or (OPEN) none. A route that does not stand here is refused.
OPEN: frozenset[str] = frozenset()
_SEND, _RECEIVE, _ADMIN = frozenset({SEND}), frozenset({RECEIVE}), frozenset({ADMIN})
_ANY = _SEND | _RECEIVE | _ADMIN
NEEDS = {
    "POST /messages": _SEND,
    "POST /queues/{queue}/messages": _SEND,
    "GET /messages": _RECEIVE,
    "GET /queues/{queue}/messages": _RECEIVE,
    "HEAD /messages": OPEN,  # refused to everybody
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
    "POST /transactions": _SEND | _RECEIVE,  # each of its parts is asked for its own
    "GET /queues": _ANY,
    "GET /queues/{queue}": _ANY,
    "PUT /queues/{queue}": _ADMIN,
    "DELETE /queues/{queue}": _ADMIN,
    "GET /queues/{queue}/peek": _RECEIVE | _ADMIN,
    "POST /queues/{queue}/purge": _ADMIN,
    "POST /queues/{queue}/redrive": _ADMIN,
    "GET /": OPEN,  # these three tell of the service, and nothing of what is in it
    "GET /docs": OPEN,
    "GET /openapi.json": OPEN,
    "GET /health": OPEN,
    "GET /ready": OPEN,
    "GET /metrics": frozenset({METRICS}),
}

FAILURES = 20  # of one client in WINDOW, in a worker, after which its wrong tokens get 429
WINDOW = 60.0  # seconds
CLIENTS = 10_000  # whose failures are remembered: a bound for memory


class Unauthenticated(WireError):
    def __init__(self, detail: str = "this requires a token: Authorization: Bearer …", error: str = "") -> None:
        super().__init__(detail)
        # No Basic: a browser would open a dialog of its own. Who sends Basic needs no challenge.
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
    """Admits requests by their tokens."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._failures = _Failures()

    def admit(self, environ: Environ, needs: frozenset[str] | None) -> None:
        """The request's grant stands in its environ. Raises Unauthenticated, Forbidden, TooManyFailures."""
        grant = self._authenticate(environ)
        environ[GRANT] = grant
        if not needs or not needs & grant.rights:
            wanted = " or ".join(sorted(needs or ()))
            raise Forbidden(f"the token '{grant.name}' lacks the right {wanted}" if wanted else "no token allows this")

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
            self._failures.add(environ.get("REMOTE_ADDR", ""))
            raise Unauthenticated("the service does not know this token", ', error="invalid_token"')
        return found


class Guard:
    """A Bottle plugin: no route is run before its request was admitted, where `access` has tokens to ask for."""

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
    """Wrong tokens by client address. Not of loopback: a proxy on this machine is many clients, and counts its own."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._counts: dict[str, tuple[int, float]] = {}  # by client: how many, and when they are forgotten

    def add(self, client: str) -> None:
        """Count one. Raises TooManyFailures for a client that has had FAILURES already."""
        if not (network := _network(client)):
            return
        now = time.monotonic()
        with self._guard:
            count, until = self._counts.pop(network, (0, 0.0))
            if until <= now:
                count, until = 0, now + WINDOW
            if len(self._counts) >= CLIENTS:
                self._counts.pop(next(iter(self._counts)))  # whose last failure is the longest ago
            self._counts[network] = (count + 1, until)
        if count >= FAILURES:
            raise TooManyFailures(until - now)


def _network(client: str) -> str:
    """Whom to count for an address: of IPv6 the /64, which one client has to itself; "" for nobody."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:  # a UNIX socket's client has none
        return ""
    address = getattr(address, "ipv4_mapped", None) or address  # an IPv4 client of a socket for both
    if address.is_loopback:
        return ""
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


def _credentials(header: str) -> tuple[str | None, str]:
    """Name (None where only a secret is sent) and secret; secrets that no token has for a header that is none."""
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
