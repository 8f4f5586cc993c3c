"""Make HTTP calls, and wait for their replies: connections, timeouts, forks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from ..errors import Closed
from .calls import NO_REPLY, Answer, Call, IsCut, Pause, Reply, Service, Steps, Tries, never
from .connection_pool import CUT_CHECKED_EVERY, ConnectionPool

if TYPE_CHECKING:
    from .proxy import Proxy

CONNECTIONS_KEPT = 64  # idle ones: as many threads can share a client

T = TypeVar("T")


class Run(Protocol):
    """Takes the steps of a call, and returns their result."""

    def __call__(self, steps: Steps[T]) -> T: ...


class Transport:
    """Calls to one service. Threads can share it, and a forked child can keep using it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._closed = False
        self._process = os.getpid()
        self._pool = ConnectionPool(*service.address, CONNECTIONS_KEPT, service.tls)
        self._proxy: Proxy | None = None
        if service.proxies:
            from .proxy import Proxy  # requests takes 0.1 s to import

            self._proxy = Proxy(service.proxies, service.verify, CONNECTIONS_KEPT)
        self.can_cut = self._proxy is None  # whether `is_cut` ends a wait for a reply, or only retries
        # TLS mostly ends at a proxy, and nginx drops a reply that is on its way to a client that has hung up.
        self.drops_late_replies = service.tls is not None

    def run(self, steps: Steps[T]) -> T:
        """Take the steps, and return their result. Raises ProblemError, Closed, Unreachable."""
        try:
            step = next(steps)
            while True:
                try:
                    reply = self.take(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

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

    def take(self, step: Call | Pause) -> Reply:
        """Make the call and return its reply, or pause. Raises ProblemError, Closed, Unreachable."""
        if isinstance(step, Call):
            return self._call(step)
        _sleep(step.seconds, step.is_cut or self.is_closed)
        return NO_REPLY

    def _call(self, call: Call) -> Reply:
        """Return the reply if it reports success. Raises ProblemError, Closed, or Unreachable after the last try."""
        if not call.last:
            self.check_open()
        ends_early = never if call.last else call.is_cut or self.is_closed
        tries = Tries(self._service, call, ends_early)
        ask = self._direct(call) if self._proxy is None else self._proxied(self._proxy, call)
        while True:
            outcome: Answer | Exception
            self._own()
            try:
                outcome = ask(tries.timeout)
            except OSError as error:
                outcome = error
            found = tries.judge(outcome)
            if isinstance(found, Reply):
                return found
            if _sleep(found.pause, ends_early):
                raise found.fault

    def _own(self) -> None:
        if self._process != os.getpid():  # after a fork the connections are the parent's
            self._pool.forget()
            if self._proxy is not None:
                self._proxy.forget()
            self._process = os.getpid()

    def _direct(self, call: Call) -> Callable[[float], Answer]:
        lines = [f"{call.method} {self._service.path}{call.path} HTTP/1.1", f"Host: {self._service.host}"]
        lines += [f"{name}: {value}" for name, value in self._service.headers(call).items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        body, bodiless, is_cut = call.body or b"", call.method == "HEAD", call.is_cut if call.waits else None
        return lambda timeout: self._pool.ask(head, body, timeout, timeout + call.waits, bodiless, is_cut)

    def _proxied(self, proxy: Proxy, call: Call) -> Callable[[float], Answer]:
        url, headers = self._service.url + call.path, self._service.headers(call)
        return lambda timeout: proxy.ask(call.method, url, headers, call.body, timeout, timeout + call.waits)


def _sleep(seconds: float, is_cut: IsCut) -> bool:
    """Sleep these seconds and return False; return True once `is_cut` does."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, CUT_CHECKED_EVERY))
        if is_cut():
            return True
    return False
