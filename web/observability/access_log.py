"""Request ids, request counts and the access log.

A log line contains the route and never the path, because a receipt lets its holder settle a message. It contains
nothing of a query, a header or a body except the id that a client gave its request.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

from storage.errors import InvalidInput
from storage.model import rfc3339
from storage.validation import check_queue_name
from web.native.request import GRANT, Environ
from web.observability.shared_counters import OTHER_ROUTE, WorkerCounters

REQUEST_ID = "queue_service.request_id"  # in the environ
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_NAMED = re.compile(r"<(\w+)[^>]*>")  # a named part of a Bottle rule, perhaps with a filter
_GIVEN_ID = re.compile(r"[A-Za-z0-9._:=/+@-]{1,128}")

Handler = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]
Log = Callable[[Environ, int, float], None]  # takes a request, its status and its seconds


class RequestRecorder:
    """Run requests and record them. Their seconds end when the reply is ready, and include a long poll's wait."""

    def __init__(self, counters: WorkerCounters, routes: Sequence[Any], log: Log | None = None) -> None:
        """Take Bottle's routes: the place of a route is that of its counts."""
        self._counters = counters
        self._places = {route: place for place, route in enumerate(routes)}
        self._log = log
        self._prefix = secrets.token_hex(4)  # of this process
        self._numbers = count(1)

    def __call__(self, handler: Handler, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        began, sent_status = time.perf_counter(), 500
        request_id = environ.get("HTTP_X_REQUEST_ID")
        if request_id is None or not _GIVEN_ID.fullmatch(request_id):
            request_id = f"{self._prefix}{next(self._numbers):08x}"
        environ[REQUEST_ID] = request_id

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            nonlocal sent_status
            sent_status = int(status[:3])
            headers.append(("X-Request-Id", request_id))
            return start_response(status, headers, exc_info)

        self._counters.begin()
        try:
            return handler(environ, start)
        finally:
            seconds = time.perf_counter() - began
            self._counters.end(self._places.get(environ.get("bottle.route"), OTHER_ROUTE), sent_status, seconds)
            if self._log is not None:
                self._log(environ, sent_status, seconds)


def log_writer(form: str, write: Callable[[bytes], object] = lambda line: os.write(1, line)) -> Log | None:
    """Return a log that writes lines of this form, "json" or "plain", to stdout; None for ""."""
    if not form:
        return None
    as_line = json.dumps if form == "json" else _as_text

    def log(environ: Environ, status: int, seconds: float) -> None:
        write(f"{as_line(_facts(environ, status, seconds))}\n".encode())

    return log


def rule_of(route: Any) -> str:
    """Return a Bottle route as docs/http.md writes it; "other" for None."""
    return "other" if route is None else _NAMED.sub(r"{\1}", route.rule)


def _facts(environ: Environ, status: int, seconds: float) -> dict[str, str | int | float]:
    method, grant = environ["REQUEST_METHOD"], environ.get(GRANT)
    return {
        "time": rfc3339(int(time.time() * 1000)),
        "client": environ.get("REMOTE_ADDR") or "-",
        "token": grant.name if grant else "-",
        "method": method if method in METHODS else "other",
        "route": rule_of(environ.get("bottle.route")),
        "queue": _queue(environ),
        "status": status,
        "ms": round(seconds * 1000, 1),
        "request_id": environ[REQUEST_ID],
    }


def _queue(environ: Environ) -> str:
    """Return the queue in the path; "-" if there is none, or it is no valid name."""
    name = environ.get("route.url_args", {}).get("queue", "-")
    with suppress(InvalidInput):
        return check_queue_name(name)
    return "-"


def _as_text(facts: dict[str, str | int | float]) -> str:
    return " ".join(map(str, facts.values()))
