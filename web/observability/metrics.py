"""The metrics in Prometheus' text format; docs/operations.md explains each of them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bottle import Bottle, HTTPResponse, request

from settings import VERSION, Settings
from storage.errors import StoreError
from storage.model import STATES, Disk, Queue, QueueStats
from storage.store import Lifecycle
from storage.validation import MAX_PAGE
from web.native import request_parsing, responses
from web.observability import access_log
from web.observability.shared_counters import (
    COMMIT_OPERATIONS,
    COMMIT_SECONDS,
    OTHER_ROUTE,
    REQUEST_SECONDS,
    STATUSES,
    Total,
    WorkerCounters,
)

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NAMED_QUEUES = 500  # reported one by one, in order of name; the rest as one
MOST_QUEUES = 10 * MAX_PAGE  # read for one scrape, so that it stays short; the rest are not reported
THE_OTHERS = "(others)"  # no queue can have this name

_TOTALS = ("sent", "received", "acked", "expired", "dead_lettered")

# name → (type, help)
METRICS = {
    "queue_messages": ("gauge", "Messages in a queue, by state."),
    "queue_dead_letters": ("gauge", "Messages from a queue that are in a dead-letter queue."),
    "queue_bytes": ("gauge", "Bytes of text and fields in a queue."),
    "queue_oldest_age_seconds": ("gauge", "Seconds that the longest-waiting ready message in a queue has been ready."),
    **{
        f"queue_messages_{total}_total": (
            "counter",
            f"Messages {total.replace('_', '-')} since the queue was created.",
        )
        for total in _TOTALS
    },
    "queue_queues": ("gauge", "Queues; at most 10,000 are counted."),
    "queue_database_bytes": ("gauge", "Bytes of the database on disk, without its log."),
    "queue_log_bytes": ("gauge", "Bytes of the write-ahead log on disk."),
    "queue_disk_free_bytes": ("gauge", "Bytes free on the database's disk."),
    "queue_store_readable": ("gauge", "1 if this scrape could read the store, else 0."),
    "queue_commit_seconds": (
        "histogram",
        "Seconds from the start of a commit to its end, including the wait for the lock.",
    ),
    "queue_commit_operations": ("histogram", "Operations in one commit."),
    "queue_processes": ("gauge", "Worker processes."),
    "queue_requests_running": ("gauge", "Running requests, without the reads that wait for a message."),
    "queue_requests_limit": ("gauge", "Requests that all threads together can run."),
    "queue_readers_waiting": ("gauge", "Reads that wait for a message."),
    "queue_readers_limit": ("gauge", "Reads that may wait at once."),
    "queue_http_requests_total": ("counter", "Requests answered, by route and status."),
    "queue_http_request_seconds": ("histogram", "Seconds until a reply was ready, including the wait for messages."),
    "queue_build_info": ("gauge", "Always 1; the labels name the versions."),
}

Labels = Mapping[str, str]
Sample = tuple[Labels, float]
Counted = tuple[Labels, Sequence[float], Sequence[float]]  # a histogram: its bounds; its counts and, last, its sum


class Listing(Protocol):
    """The part of a store that a scrape needs."""

    def queues(self, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> list[Queue]: ...


class Service(Protocol):
    """The service, as far as /metrics reports on it."""

    @property
    def settings(self) -> Settings: ...

    @property
    def routes(self) -> Sequence[Any]: ...

    @property
    def counters(self) -> WorkerCounters: ...

    @property
    def store(self) -> Listing: ...

    pollers: int

    @property
    def unrestricted_store(self) -> Lifecycle: ...


class Limits(NamedTuple):
    """The limits of each process."""

    threads: int
    pollers: int


def mount(app: Bottle, service: Service) -> None:
    @app.get("/metrics")
    def scraped() -> HTTPResponse:
        request_parsing.nothing(request.environ)
        routes = [f"{route.method} {access_log.rule_of(route)}" for route in service.routes]
        limits = Limits(service.settings.threads, service.pollers)
        disk = service.unrestricted_store.disk
        exposed = exposition(service.store, disk, service.counters.counts.total(), routes, limits, VERSION)
        return responses.text(exposed, CONTENT_TYPE)


def exposition(
    store: Listing, disk: Callable[[], Disk], total: Total, routes: Sequence[str], limits: Limits, version: str
) -> str:
    """Return all metrics as text. `routes`: as "METHOD /rule", in the order of the counts."""
    from prometheus_client import CollectorRegistry, generate_latest  # its import reads the environment

    try:
        families = [*_of_queues(_read(store)), *_of_disk(disk())]
        readable = 1.0
    except StoreError:  # the processes' counters matter most just then
        families, readable = [], 0.0
    families += [_plain("queue_store_readable", readable), *_of_processes(total, limits), *_of_routes(total, routes)]
    build = {"version": version, "python": platform.python_version()}
    families.append(_family("queue_build_info", [(build, 1)]))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Found(families))
    return generate_latest(registry).decode()


class _Found:
    """A collector of metrics that are already complete."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _read(store: Listing) -> list[Queue]:
    """Return the first MOST_QUEUES queues, page by page, so that each read is short."""
    found = page = store.queues()
    while len(page) == MAX_PAGE and len(found) < MOST_QUEUES:
        page = store.queues(after=page[-1].name)
        found = found + page
    return found


def _of_queues(queues: list[Queue]) -> Iterator[Metric]:
    rows = [(queue.name, queue.stats) for queue in queues[:NAMED_QUEUES]]
    if rest := [queue.stats for queue in queues[NAMED_QUEUES:]]:
        summed = QueueStats(*(sum(values) for values in zip(*rest, strict=True)))
        summed = summed._replace(oldest_age=max(stats.oldest_age for stats in rest))
        rows.append((THE_OTHERS, summed))
    yield _family(
        "queue_messages",
        [({"queue": name, "state": state}, getattr(stats, state)) for name, stats in rows for state in STATES],
    )
    fields = {"queue_dead_letters": "dead", "queue_bytes": "bytes", "queue_oldest_age_seconds": "oldest_age"}
    fields |= {f"queue_messages_{total}_total": total for total in _TOTALS}
    for metric, field in fields.items():
        yield _family(metric, [({"queue": name}, getattr(stats, field)) for name, stats in rows])
    yield _plain("queue_queues", len(queues))


def _of_disk(disk: Disk) -> Iterator[Metric]:
    for part, size in disk._asdict().items():
        if size is not None:
            yield _plain(f"queue_{part}_bytes", size)


def _of_processes(total: Total, limits: Limits) -> Iterator[Metric]:
    yield _histograms("queue_commit_seconds", [({}, COMMIT_SECONDS, total.commits)])
    yield _histograms("queue_commit_operations", [({}, COMMIT_OPERATIONS, total.operations)])
    yield _plain("queue_processes", total.processes)
    yield _plain("queue_requests_running", max(0.0, total.running - total.waiting))
    yield _plain("queue_requests_limit", total.processes * limits.threads)
    yield _plain("queue_readers_waiting", total.waiting)
    yield _plain("queue_readers_limit", total.processes * limits.pollers)


def _of_routes(total: Total, routes: Sequence[str]) -> Iterator[Metric]:
    """Yield the metrics of routes with requests; unused combinations would be a thousand lines."""
    places = [*enumerate(routes), (OTHER_ROUTE, "other other")]
    labelled = [(place, dict(zip(("method", "route"), name.split(" "), strict=True))) for place, name in places]
    yield _family(
        "queue_http_requests_total",
        [
            (labels | {"status": str(status)}, count)
            for place, labels in labelled
            for status, count in zip((*STATUSES, "other"), total.requests(place), strict=True)
            if count
        ],
    )
    yield _histograms(
        "queue_http_request_seconds",
        [(labels, REQUEST_SECONDS, seconds) for place, labels in labelled if any(seconds := total.seconds(place))],
    )


def _plain(name: str, value: float) -> Metric:
    return _family(name, [({}, value)])


def _family(name: str, samples: Sequence[Sample]) -> Metric:
    from prometheus_client.core import Metric

    kind, description = METRICS[name]
    family = Metric(name.removesuffix("_total") if kind == "counter" else name, description, kind)
    for labels, value in samples:
        family.add_sample(name, dict(labels), value)
    return family


def _histograms(name: str, counted: Sequence[Counted]) -> Metric:
    family = _family(name, [])
    for labels, bounds, (*counts, summed) in counted:
        running = list(accumulate(counts))
        for bound, count in zip([f"{bound:g}" for bound in bounds] + ["+Inf"], running, strict=True):
            family.add_sample(f"{name}_bucket", {**labels, "le": bound}, count)
        family.add_sample(f"{name}_sum", dict(labels), summed)
        family.add_sample(f"{name}_count", dict(labels), running[-1])
    return family
