"""HTTP calls without their sending: what a call asks for, and whether it is retried.

The service may have done a call whose reply was lost. A retry is safe because the call is idempotent, or because all
tries carry one Idempotency-Key, so the service does it once.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

from ..errors import ProblemError, Unauthenticated, Unreachable, problem
from ..log import log
from .connection import tls_context

FIRST_PAUSE = 0.05  # seconds before the second retry; doubles with each later one
LONGEST_PAUSE = 5.0  # seconds
DEFAULT_URL = "http://127.0.0.1:5000"
NO_TLS = ("WRONG_VERSION_NUMBER", "record layer failure")  # in OpenSSL's errors
NOTHING_DONE = (
    "busy",
    "disk_full",
    "queue_full",
    "too_many_failures",
)  # codes of errors worth a retry

Answer = tuple[int, Mapping[str, str], bytes]  # status, headers, body
IsCut = Callable[[], bool]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and how it is retried.

    All tries carry one Idempotency-Key, `key` or a random one, unless the call is `idempotent`. After a lost reply
    the statuses `done_if_lost` count as success: the lost try did it. `waits` is how long the service may delay
    its reply, in seconds; that wait and retries end once `is_cut` returns True. `timeout` and `retry_for` override
    the client's own. A `last` call is allowed after `close`. A call with leased messages in its reply has `late_reply`:
    steps that return the reply after it was cut and got none. So messages that come too late can be released.
    """

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    idempotent: bool = False
    done_if_lost: tuple[int, ...] = ()
    waits: float = 0
    is_cut: IsCut | None = None
    timeout: float | None = None
    retry_for: float | None = None
    last: bool = False
    late_reply: Callable[[], Steps[Reply]] | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """A wait of these seconds, which ends early once `is_cut` returns True, or at `close`."""

    seconds: float
    is_cut: IsCut | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply that reports success."""

    status: int
    headers: Mapping[str, str]
    body: bytes


NO_REPLY = Reply(204, {}, b"")  # to a pause

# A client's call, step by step: a generator that yields what to send, gets the replies, and returns the result.
Steps = Generator[Call | Pause, Reply, T]


class Service:
    """The address of a service, and the settings of all calls to it.

    Raises ValueError for a URL that is not http(s)://host, and for certificates that are not there. `timeout` limits
    one try, in seconds. `retry_for` limits the time for retries of a call, in seconds. The other arguments are as in
    QueueClient.
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
        self.timeout = timeout
        self.retry_for = retry_for
        self._headers = {"Accept": "application/json", "User-Agent": "queue-service-client"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self.proxies: dict[str, str] = {}  # by scheme, as in requests; empty: there is none on the way
        self.verify = verify
        if trust_env:
            from .environment import proxies_and_verify  # requests takes 0.1 s to import

            self.proxies, self.verify = proxies_and_verify(self.url, verify)
        self.path = parts.path.rstrip("/")
        self.host = parts.netloc.rpartition("@")[2]
        self.tls = tls_context(self.verify) if parts.scheme == "https" else None
        self.address = (parts.hostname, parts.port or (443 if self.tls else 80))

    def headers(self, call: Call) -> dict[str, str]:
        """Return the headers of all tries of the call. Raises ValueError for a line break."""
        found = {**self._headers, **call.headers}
        if call.key or not call.idempotent:
            found["Idempotency-Key"] = call.key or os.urandom(16).hex()
        if call.body is not None:
            found.setdefault("Content-Type", "application/json")
        if call.body is not None or call.method not in ("GET", "HEAD"):
            found["Content-Length"] = str(len(call.body or b""))
        for name, value in found.items():
            if "\r" in value or "\n" in value:
                raise ValueError(f"{name} contains a line break")
        return found

    def with_hint(self, fault: ProblemError) -> ProblemError:
        """Return the error, with what to do if no token was sent."""
        if not isinstance(fault, Unauthenticated) or "Authorization" in self._headers:
            return fault
        hint = "this service requires a token: set QUEUE_TOKEN, or pass token="
        return Unauthenticated(fault.status, {**fault.document, "detail": hint}, fault.retry_after)


class Tries:
    """The tries of one call. The first retry that has to wait is logged as a warning."""

    def __init__(self, service: Service, call: Call, ends_early: IsCut) -> None:
        self.timeout = service.timeout if call.timeout is None else call.timeout
        self._service = service
        self._call = call
        self._ends_early = ends_early
        self._retry_for = service.retry_for if call.retry_for is None else call.retry_for
        self._give_up = time.monotonic() + self._retry_for
        self._tries, self._is_lost, self._has_warned = 0, False, False

    def judge(self, outcome: Answer | Exception) -> Reply | Retry:
        """Return the reply of a try that succeeded, or when to try again. Raises ProblemError, Unreachable."""
        self._tries += 1
        fault: ProblemError | Unreachable
        if not isinstance(outcome, Exception) and outcome[0] == 200 and not outcome[2]:
            outcome = ConnectionError()  # a proxy lost the reply: those of the service have a body
        if isinstance(outcome, Exception):
            fault = Unreachable(f"{self._service.url} does not answer: {_reason(outcome)}")
            if _is_lasting(outcome):
                raise fault from outcome
            self._is_lost = self._is_lost or not isinstance(outcome, ConnectionRefusedError)
        else:
            status, headers, body = outcome
            if 200 <= status < 300 or (self._is_lost and status in self._call.done_if_lost):
                return Reply(status, headers, body)
            fault = self._service.with_hint(problem(status, body, retry_after(headers)))
            if status not in (429, 502, 503, 504):
                raise fault
            self._is_lost = self._is_lost or fault.code not in NOTHING_DONE
        left = self._give_up - time.monotonic()
        pause = _pause(self._tries, fault, left)
        if left <= 0 or pause > left or self._ends_early():
            raise fault
        if pause and not self._has_warned:
            limit = "until it does" if math.isinf(self._retry_for) else f"for up to {self._retry_for:g} s"
            log.warning("%s; retrying %s", fault, limit)
            self._has_warned = True
        return Retry(pause, fault)


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry after these seconds; if the client closes before, the error to raise."""

    pause: float
    fault: ProblemError | Unreachable


def never() -> bool:
    """Be the `ends_early` of tries that nothing ends."""
    return False


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header; None without one, or for a date."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None


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


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no reply in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
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
