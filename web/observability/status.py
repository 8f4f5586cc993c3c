"""The state of this node in a few numbers, which cost little to read: for pages that show them live."""

from __future__ import annotations

from typing import Any, Protocol

from bottle import Bottle, HTTPResponse, request

from settings import VERSION
from storage.model import Disk, rfc3339
from storage.store import Lifecycle
from web.native import request_parsing, responses
from web.observability.shared_counters import SharedCounters, WorkerCounters


class Service(Protocol):
    """The service, as far as /status reports on it."""

    @property
    def counters(self) -> WorkerCounters: ...

    @property
    def unrestricted_store(self) -> Lifecycle: ...


def mount(app: Bottle, service: Service) -> None:
    @app.get("/status")
    def status() -> HTTPResponse:
        request_parsing.nothing(request.environ)
        store = service.unrestricted_store
        disk = store.disk()
        return responses.value({"version": VERSION, "engine": store.engine} | summary(service.counters.counts, disk))


def summary(counters: SharedCounters, disk: Disk) -> dict[str, Any]:
    """Return the use of the disk, and totals of all processes of this node since it started."""
    total = counters.total()
    statuses = total.by_status()
    *commits, seconds = total.commits
    return {
        "started_at": rfc3339(counters.started_at),
        "database_bytes": disk.database,
        "log_bytes": disk.log,
        "disk_free_bytes": disk.disk_free,
        "requests": sum(statuses.values()),
        "errors": sum(count for status, count in statuses.items() if status >= 500),
        "commits": int(sum(commits)),
        "commit_seconds": seconds,
        "waiting_readers": int(total.waiting),
    }
