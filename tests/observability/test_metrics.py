"""Test /metrics in Prometheus' format, equal from every process, and its documents and rules."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

import handler
from clients import QueueClient
from settings import VERSION, Settings
from storage.errors import Unavailable
from storage.model import Disk, NewMessage, Receive
from storage.store import Engine
from tests.support.live import REPOSITORY, LiveServer, await_true
from tests.support.programs import program
from tests.support.wsgi import Client, a_store
from web.native import problems
from web.observability import metrics, shared_counters
from web.observability.shared_counters import SharedCounters

ALERTS = (REPOSITORY / "docs/alerts.yaml").read_text()
DASHBOARD = json.loads((REPOSITORY / "docs/grafana-dashboard.json").read_text())
OPERATIONS = (REPOSITORY / "docs/operations.md").read_text()

Samples = dict[tuple[str, ...], float]  # (name, its labels as name=value …) → value


@pytest.fixture
def store() -> Iterator[Engine]:
    with a_store() as store:
        yield store


@pytest.fixture
def client(store: Engine) -> Client:
    return Client(handler.make_app(Settings(), store))


def parsed(text: str) -> Samples:
    """Parse metrics like Prometheus, and check that every family is as in METRICS."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        assert metrics.METRICS[name] == (family.type, family.documentation)
        for sample in family.samples:
            place = (sample.name, *(f"{label}={value}" for label, value in sorted(sample.labels.items())))
            assert place not in samples
            samples[place] = sample.value
    return samples


def scraped(client: Client) -> Samples:
    reply = client.get("/metrics")
    assert reply.headers["content-type"] == metrics.CONTENT_TYPE
    return parsed(reply.body.decode())


def live(server: LiveServer) -> Samples:
    with urlopen(f"{server.url}/metrics", timeout=20) as reply:
        return parsed(reply.read().decode())


def busy(client: Client) -> None:
    """Send requests and messages of every kind, so that every metric has a value."""
    client.post("/queues/jobs/messages", [{"text": "a"}, {"text": "b", "delay": 60}, {"text": "c", "key": "k"}])
    client.get("/queues/jobs/messages?lease=60")
    client.get("/nowhere")


def test_all_metrics_are_exported_and_no_others(client: Client) -> None:
    busy(client)
    names = {
        line.split(" ")[2] for line in client.get("/metrics").body.decode().splitlines() if line.startswith("# TYPE")
    }
    assert names == metrics.METRICS.keys()
    scraped(client)


def test_a_queues_metrics_equal_its_stats_in_the_api(client: Client) -> None:
    busy(client)
    values, stats = scraped(client), client.get("/queues/jobs").json["stats"]
    for state in ("ready", "leased", "delayed", "blocked"):
        assert values["queue_messages", "queue=jobs", f"state={state}"] == stats[state]
    for total in ("sent", "received", "acked", "expired", "dead_lettered"):
        assert values[f"queue_messages_{total}_total", "queue=jobs"] == stats[total]
    assert values["queue_bytes", "queue=jobs"] == stats["bytes"]
    assert values["queue_dead_letters", "queue=jobs"] == stats["dead"] == 0
    assert 0 <= values["queue_oldest_age_seconds", "queue=jobs"] <= stats["oldest_age"]
    assert values["queue_queues",] == 1


def test_requests_are_counted_by_route_and_status_and_never_by_path(client: Client) -> None:
    for target in ("/queues/one/messages", "/queues/two/messages", "/queues/a%20b/messages", "/secret", "/messages%ff"):
        client.get(target)
    client.call("BREW", "/messages")
    values = {place: value for place, value in scraped(client).items() if place[0] == "queue_http_requests_total"}
    route = "route=/queues/{queue}/messages"
    assert values == {
        ("queue_http_requests_total", "method=GET", route, "status=204"): 2,
        ("queue_http_requests_total", "method=GET", route, "status=400"): 1,
        ("queue_http_requests_total", "method=other", "route=other", "status=404"): 2,
        ("queue_http_requests_total", "method=other", "route=other", "status=405"): 1,
    }


def test_all_routes_have_their_own_counter() -> None:
    assert len(handler.make_app().routes) < shared_counters.OTHER_ROUTE


def test_every_status_of_the_service_is_counted_by_its_number() -> None:
    answered = {status for status, _, _ in problems.PROBLEMS.values()} | set(problems.ROUTING) | {200, 204, 303}
    assert answered <= set(shared_counters.STATUSES)


def test_a_commit_is_counted_with_its_operations_and_its_time(client: Client) -> None:
    before = scraped(client)
    client.post("/messages", [{"text": "a"}, {"text": "b"}])
    client.get("/messages")
    after = scraped(client)
    for name in ("queue_commit_seconds_count", "queue_commit_operations_count", "queue_commit_operations_sum"):
        assert after[name,] == before[name,] + 2
    assert after["queue_commit_seconds_sum",] > before["queue_commit_seconds_sum",]


def test_histograms_count_each_value_in_every_bound_above_it() -> None:
    slot = SharedCounters(1).take()
    for seconds in (0.0, 0.001, 0.0011, 19.0, 21.0):
        slot.begin()
        slot.end(0, 200, seconds)
    store = _Empty()
    values = parsed(metrics.exposition(store, store.disk, slot.counts.total(), ["GET /x"], metrics.Limits(2, 1), "1"))
    labels = ("method=GET", "route=/x")
    bounds = {bound: values["queue_http_request_seconds_bucket", f"le={bound}", *labels] for bound in
              ("0.001", "0.002", "5", "20", "+Inf")}  # fmt: skip
    assert bounds == {"0.001": 2, "0.002": 3, "5": 3, "20": 4, "+Inf": 5}
    assert values["queue_http_request_seconds_count", *labels] == 5
    assert values["queue_http_request_seconds_sum", *labels] == pytest.approx(40.0021)


class _Empty:
    """A store without messages and without disk figures."""

    def queues(self, prefix: str = "", after: str = "", limit: int = 1) -> list[Any]:
        return []

    def disk(self) -> Disk:
        return Disk(None, None, None)


def test_metrics_that_an_engine_does_not_have_are_left_out() -> None:
    store = _Empty()
    values = parsed(
        metrics.exposition(store, store.disk, SharedCounters(1).take().counts.total(), [], metrics.Limits(2, 1), "1")
    )
    assert values["queue_store_readable",] == 1
    assert ("queue_log_bytes",) not in values


def test_process_counters_are_exported_while_the_store_cannot_be_read(
    client: Client, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[Any]:
        raise Unavailable("the disk has failed")

    busy(client)
    monkeypatch.setattr(store, "queues", fail)
    values = scraped(client)
    assert values["queue_store_readable",] == 0
    assert ("queue_queues",) not in values
    assert values["queue_http_requests_total", "method=other", "route=other", "status=404"] == 1


def test_many_queues_are_exported_in_a_bounded_number_of_lines(
    client: Client, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "NAMED_QUEUES", 2)
    for name in "dcba":
        store.send(name, [NewMessage("x")])
    values = scraped(client)
    named = {place[1]: value for place, value in values.items() if place[0] == "queue_messages_sent_total"}
    assert named == {"queue=a": 1, "queue=b": 1, "queue=(others)": 2}
    assert values["queue_queues",] == 4
    assert values["queue_oldest_age_seconds", "queue=(others)"] < 60


def test_metrics_need_their_own_right_and_cover_the_queues_of_the_token(store: Engine) -> None:
    app = handler.make_app(
        Settings(tokens="p:0123456789abcdef:metrics:a*;q:fedcba9876543210:send,receive,admin:*"), store
    )
    for name in ("a1", "b1"):
        store.send(name, [NewMessage("x")])
    values = scraped(Client(app, Authorization="Bearer 0123456789abcdef"))
    assert {place[1] for place in values if place[0] == "queue_bytes"} == {"queue=a1"}
    assert Client(app, Authorization="Bearer fedcba9876543210").get("/metrics").status == 403
    assert Client(app).get("/metrics").status == 401


# Counting, by many threads and processes.


def test_no_count_is_lost_among_threads() -> None:
    slot = SharedCounters(1).take()

    def work() -> None:
        for _ in range(2_000):
            slot.begin()
            slot.end(1, 200, 0.5)
            slot.committed(3, 0.5)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = slot.counts.total()
    assert (total.running, sum(total.requests(1)), total.seconds(1)[-1]) == (0, 16_000, 8_000)
    assert (total.commits[-1], total.operations[-1]) == (8_000, 48_000)


FORKED = """
import json, os
from web.observability.shared_counters import SharedCounters

memory = SharedCounters(4)
slots = [memory.take() for _ in range(2)]

def values():
    total = memory.total()
    return [total.processes, total.running, total.waiting, sum(total.requests(0))]

if (child := os.fork()) == 0:
    for slot in slots:
        slot.begin()
        slot.begin()
        slot.end(0, 204, 0.1)
        slot.waiting(5)
    os._exit(0)
os.waitpid(child, 0)
both = values()
slots[0].free()
one = values()
memory.take().begin()
print(json.dumps([both, one, values()]))
"""


def test_processes_count_together_and_a_new_one_continues_for_an_ended_one() -> None:
    """Compare processes, running, waiting and done requests before and after an end and a replacement."""
    ran = subprocess.run([sys.executable, "-c", FORKED], cwd=REPOSITORY, capture_output=True, check=True)
    assert json.loads(ran.stdout) == [[2, 2, 10, 2], [1, 1, 5, 2], [2, 2, 5, 2]]


def test_more_processes_than_slots_share_the_last() -> None:
    memory = SharedCounters(1)
    for _ in range(2):
        slot = memory.take()
        slot.begin()
        slot.end(0, 200, 0.1)
    assert sum(memory.total().requests(0)) == 2


@pytest.fixture(scope="module")
def three() -> Iterator[LiveServer]:
    with LiveServer({"WEB_CONCURRENCY": "3"}) as server:
        yield server


HEALTH = ("queue_http_requests_total", "method=GET", "route=/health", "status=200")


def test_every_process_reports_the_totals_of_all_including_dead_ones(three: LiveServer) -> None:
    before = live(three).get(HEALTH, 0)
    for _ in range(60):  # each on a new connection, so spread over all processes
        with urlopen(f"{three.url}/health", timeout=20) as reply:
            assert reply.status == 200
    assert {live(three)[HEALTH] for _ in range(20)} == {before + 60}
    workers = Path(f"/proc/{three.pid}/task/{three.pid}/children")
    victim = int(workers.read_text().split()[0])
    os.kill(victim, signal.SIGKILL)
    await_true(lambda: victim not in map(int, workers.read_text().split()))
    await_true(lambda: live(three)["queue_processes",] == 3)
    assert live(three)[HEALTH] == before + 60


def test_waiting_readers_of_all_processes_are_counted(three: LiveServer, queue: str) -> None:
    with QueueClient(three.url, queue=queue) as client:
        readers = [threading.Thread(target=client.receive, kwargs={"wait": 15}) for _ in range(6)]
        for reader in readers:
            reader.start()
        await_true(lambda: live(three)["queue_readers_waiting",] == 6)
        values = live(three)
        assert values["queue_requests_running",] == 1  # this scrape
        assert values["queue_readers_limit",] > 3 * 1_000
        assert values["queue_requests_limit",] == 3 * 64
        client.send_many(["x"] * 6)
        for reader in readers:
            reader.join()
    await_true(lambda: live(three)["queue_readers_waiting",] == 0)


def test_the_disk_metrics_match_the_disk(three: LiveServer, queue: str) -> None:
    with QueueClient(three.url, queue=queue) as client:
        client.send("x" * 100_000)
    values = live(three)
    assert values["queue_log_bytes",] >= 100_000 or values["queue_database_bytes",] >= 100_000
    free = shutil.disk_usage(three.directory).free
    assert values["queue_disk_free_bytes",] == pytest.approx(free, rel=0.5)


# The observer of an engine.


def test_a_store_notifies_its_observer_of_commits_and_waiting_readers(store: Engine) -> None:
    observed: list[tuple[str, Any]] = []

    class Watcher:
        def committed(self, operations: int, seconds: float) -> None:
            observed.append(("committed", operations))
            assert seconds > 0

        def waiting(self, readers: int) -> None:
            observed.append(("waiting", readers))

    store.observe(Watcher())
    store.send("q", [NewMessage("x"), NewMessage("y")])
    assert observed == [("committed", 1)]
    assert store.receive(Receive(("none",), wait=0.01)) == []
    assert [what for what in observed if what[0] == "waiting"] == [("waiting", 1), ("waiting", 0)]


# Documents, dashboard and rules.


def names_in(text: str) -> set[str]:
    """Return the metrics that an expression uses, a histogram by its name."""
    found = set(re.findall(r"\bqueue_[a-z_]+", text)) - {"queue_service"}
    return {re.sub("_(bucket|sum|count)$", "", name) for name in found}


def labels_in(text: str) -> set[str]:
    matched = re.findall(r"([a-z]+)(?:=~|!~|!=|=)\"", text)
    grouped = [name.strip() for group in re.findall(r"\bby \(([^)]*)\)", text) for name in group.split(",")]
    return {*matched, *grouped}


EXPRESSIONS = {
    "dashboard": [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    + [variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"],
    "alerts": re.findall(r"^        expr: (.*(?:\n          .*)*)", ALERTS, re.MULTILINE),
}


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_dashboard_and_rules_use_only_existing_metrics_and_labels(where: str, client: Client) -> None:
    busy(client)
    labels = {label.partition("=")[0] for place in scraped(client) for label in place[1:]}
    assert len(EXPRESSIONS[where]) >= 12
    for expression in EXPRESSIONS[where]:
        assert names_in(expression) <= metrics.METRICS.keys(), expression
        assert names_in(expression) or "up{" in expression
        assert labels_in(expression) <= labels | {"instance", "job"}, expression


def test_the_dashboard_shows_every_metric_but_what_is_running() -> None:
    assert {name for text in EXPRESSIONS["dashboard"] for name in names_in(text)} == metrics.METRICS.keys()


def test_panels_have_unique_titles_and_do_not_overlap() -> None:
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(set(places)) == len(titles)


def rows(heading: str) -> list[list[str]]:
    lines = re.search(rf"^\| {heading} \|.*\n\|-.*\n((?:\|.*\n)+)", OPERATIONS, re.MULTILINE)
    assert lines is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1].splitlines()]


def test_every_metric_is_documented_with_its_labels(client: Client) -> None:
    busy(client)
    exported: dict[str, set[str]] = {name: set() for name in metrics.METRICS}
    for name, *labels in scraped(client):
        base = name if name in exported else re.sub("_(bucket|sum|count)$", "", name)
        exported[base] |= {label.partition("=")[0] for label in labels} - {"le"}
    documented = {row[0].strip("`"): set(re.findall("`([a-z]+)`", row[1])) for row in rows("metric")}
    assert documented == exported


def test_every_alert_is_documented_and_every_documented_alert_exists() -> None:
    alerts = re.findall(r"^      - alert: (\w+)$", ALERTS, re.MULTILINE)
    assert [row[0].strip("`") for row in rows("alert")] == alerts
    assert len(alerts) == len(EXPRESSIONS["alerts"]) == len(set(alerts))


def test_prometheus_accepts_the_rules() -> None:
    checked = subprocess.run([program("promtool"), "check", "rules", "docs/alerts.yaml"], cwd=REPOSITORY, check=False)
    assert checked.returncode == 0


def test_the_exported_version_is_that_of_the_package(client: Client) -> None:
    (build,) = [place for place in scraped(client) if place[0] == "queue_build_info"]
    assert f"version={VERSION}" in build
