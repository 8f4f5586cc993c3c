"""Make an HTTP call and retry it until it is answered: connections, timeouts, backoff.

The service may have done a call whose reply was lost. A retry is safe because the call is idempotent, or because all
tries carry one Idempotency-Key, so the service does it once.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import Closed, ProblemError, Unauthenticated, Unreachable, problem
from ..log import log
from .connection import tls_context
from .connection_pool import CUT_CHECKED_EVERY, Answer, ConnectionPool

if TYPE_CHECKING:
    from .proxy import Proxy

FIRST_PAUSE = 0.05  # seconds before the second retry; doubles with each later one
LONGEST_PAUSE = 5.0  # seconds
DEFAULT_URL = "http://127.0.0.1:5000"
NO_TLS = ("WRONG_VERSION_NUMBER", "record layer failure")  # in OpenSSL's errors
CONNECTIONS_KEPT = 64  # idle ones: as many threads can share a client
NOTHING_DONE = (
    "busy",
    "disk_full",
    "queue_full",
    "too_many_failures",
)  # codes of errors worth a retry


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply that reports success."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Calls to one service. Threads can share it, and a forked child can keep using it.

    Raises ValueError for a URL that is not http(s)://host. `timeout` limits one try, in seconds. `retry_for` limits
    the time for retries of a call, in seconds. The first retry that has to wait is logged as a warning.
    """

    def __init__(
        self, url: str, *, token: str | None, timeout: float, retry_for: float, trust_env: bool, verify: bool | str
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"the URL of a service starts with http:// or https://, as in {DEFAULT_URL}, not {url!r}")
        if not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"the URL of a service has a host and no query, as in {DEFAULT_URL}, not {url!r}")
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._retry_for = retry_for
        self._headers = {"Accept": "application/json", "User-Agent": "queue-service-client"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._proxy: Proxy | None = None
        if trust_env:
            from .proxy import from_environment  # requests takes 0.1 s to import

            verify, self._proxy = from_environment(self.url, verify, CONNECTIONS_KEPT)
        self._path = parts.path.rstrip("/")
        self._host = parts.netloc.rpartition("@")[2]
        is_tls = parts.scheme == "https"
        tls = tls_context(verify) if is_tls and self._proxy is None else None
        self._pool = ConnectionPool(parts.hostname, parts.port or (443 if tls else 80), CONNECTIONS_KEPT, tls)
        self.can_cut = self._proxy is None  # whether `is_cut` ends a wait for a reply, or only retries
        # TLS mostly ends at a proxy, and nginx drops a reply that is on its way to a client that has hung up.
        self.drops_late_replies = is_tls
        self._process = os.getpid()
        self._closed = False

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        idempotent: bool = False,
        done_if_lost: tuple[int, ...] = (),
        waits: float = 0,
        is_cut: Callable[[], bool] | None = None,
        timeout: float | None = None,
        retry_for: float | None = None,
        last: bool = False,
    ) -> Reply:
        """Return the reply if it reports success. Raises ProblemError, Closed, or Unreachable after the last try.

        All tries carry one Idempotency-Key, `key` or a random one, unless the call is `idempotent`. After a lost reply
        the statuses `done_if_lost` count as success: the lost try did it. `waits` is how long the service may delay
        its reply, in seconds; that wait and retries end once `is_cut` returns True. `timeout` and `retry_for` override
        the client's own. A `last` call is allowed after `close`.
        """
        if not last:
            self.check_open()
        found = dict(headers or {})
        if key or not idempotent:
            found["Idempotency-Key"] = key or os.urandom(16).hex()
        if self._proxy is None:
            ask = self._direct_call(method, path, body, found, is_cut if waits and self.can_cut else None)
        else:
            ask = self._proxied_call(self._proxy, method, path, body, found)
        timeout = self._timeout if timeout is None else timeout
        retry_for = self._retry_for if retry_for is None else retry_for
        give_up = time.monotonic() + retry_for
        tries, lost, warned = 0, False, False
        ends_early = _never if last else is_cut or self.is_closed
        while True:
            tries += 1
            fault: ProblemError | Unreachable
            try:
                status, got, content = self._try_once(ask, timeout, waits)
            except OSError as error:
                fault = Unreachable(f"{self.url} does not answer: {_reason(error)}")
                if _is_lasting(error):
                    raise fault from error
                lost = lost or not isinstance(error, ConnectionRefusedError)
            else:
                if 200 <= status < 300 or (lost and status in done_if_lost):
                    return Reply(status, got, content)
                fault = self._with_hint(problem(status, content, retry_after(got)))
                if status not in (429, 502, 503, 504):
                    raise fault
                lost = lost or fault.code not in NOTHING_DONE
            left = give_up - time.monotonic()
            pause = _pause(tries, fault, left)
            if left <= 0 or pause > left or ends_early():
                raise fault
            if pause and not warned:
                log.warning("%s; retrying for up to %g s", fault, retry_for)
                warned = True
            if _sleep(pause, ends_early):
                raise fault

    def close(self) -> None:
        """Close idle connections. Calls are not retried, and later ones raise Closed."""
        self._closed = True
        self._own()
        self._pool.close()
        if self._proxy is not None:
            self._proxy.close()

    def is_closed(self) -> bool:
        return self._closed

    def check_open(self) -> None:
        """Raise Closed after `close`."""
        if self._closed:
            raise Closed("this client was closed")

    def sleep(self, seconds: float, is_cut: Callable[[], bool] | None = None) -> None:
        """Sleep these seconds, but not once `is_cut` returns True, or beyond `close`."""
        _sleep(seconds, is_cut or self.is_closed)

    def _with_hint(self, fault: ProblemError) -> ProblemError:
        if not isinstance(fault, Unauthenticated) or "Authorization" in self._headers:
            return fault
        hint = "this service requires a token: set QUEUE_TOKEN, or pass token="
        return Unauthenticated(fault.status, {**fault.document, "detail": hint}, fault.retry_after)

    def _own(self) -> None:
        if self._process != os.getpid():  # after a fork the connections are the parent's
            self._pool.forget()
            if self._proxy is not None:
                self._proxy.forget()
            self._process = os.getpid()

    def _try_once(self, ask: Callable[[float, float], Answer], timeout: float, waits: float) -> Answer:
        self._own()
        return ask(timeout, waits)

    def _direct_call(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], is_cut: Callable[[], bool] | None
    ) -> Callable[[float, float], Answer]:
        lines = [f"{method} {self._path}{path} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in self._all_headers(method, body, headers).items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        bodiless = method == "HEAD"
        return lambda timeout, waits: self._pool.ask(head, body or b"", timeout, timeout + waits, bodiless, is_cut)

    def _proxied_call(
        self, proxy: Proxy, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Callable[[float, float], Answer]:
        url, found = self.url + path, self._all_headers(method, body, headers)
        return lambda timeout, waits: proxy.ask(method, url, found, body, timeout, timeout + waits)

    def _all_headers(self, method: str, body: bytes | None, headers: Mapping[str, str]) -> dict[str, str]:
        found = {**self._headers, **headers}
        if body is not None:
            found.setdefault("Content-Type", "application/json")
        if body is not None or method not in ("GET", "HEAD"):
            found["Content-Length"] = str(len(body or b""))
        for name, value in found.items():
            if "\r" in value or "\n" in value:
                raise ValueError(f"{name} contains a line break")
        return found


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header; None without one, or for a date."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _sleep(seconds: float, is_cut: Callable[[], bool]) -> bool:
    """Sleep these seconds and return False; return True once `is_cut` does."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, CUT_CHECKED_EVERY))
        if is_cut():
            return True
    return False


def _never() -> bool:
    return False


def _is_lasting(error: Exception) -> bool:
    """Return whether a retry cannot succeed before the URL, the certificate or a setting is changed."""
    return any(sign in str(error) for sign in (*NO_TLS, "CERTIFICATE_VERIFY_FAILED"))


def _pause(tries: int, fault: ProblemError | Unreachable, left: float) -> float:
    """Return the seconds until the next try, at most about the `left` ones.

    They are random, so that clients which failed together do not retry together.
    """
    if isinstance(fault, ProblemError) and fault.retry_after is not None:
        return fault.retry_after * random.uniform(1.0, 1.25)
    if tries == 1:
        return 0.0  # usually the service had closed an idle connection
    return min(left, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(tries - 2, 16)) * random.uniform(0.5, 1.0))


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no reply in time"
    text = str(error)
    if any(sign in text for sign in NO_TLS):
        return "this port does not speak TLS; use http:// instead of https://"
    for sign, reason in (
        ("refused", "connection refused"),
        ("resol", "no such host"),
        ("No address", "no such host"),
        ("Name or service", "no such host"),
        ("CERTIFICATE_VERIFY_FAILED", "its TLS certificate is not trusted; set `verify` to the file of its authority"),
        ("SSL", "TLS: the certificate or the protocol is not accepted"),
    ):
        if sign in text:
            return reason
    return "the connection broke"
