"""The benchmarks run and report figures. They run in a tiny form, so the figures mean nothing here."""

from __future__ import annotations

import importlib
import math
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import against, load, peers, plot, report
from benchmarks.one_transaction_each import PlainApplication, PlainStore
from benchmarks.processes import Start, run_jobs
from benchmarks.queues.peer import NotInstalled, program, versions
from benchmarks.report import Figure, Result
from settings import Settings
from storage.model import NewMessage

SVG = "{http://www.w3.org/2000/svg}"

FEW = {name: {1: 4, 10: 2} for name in ("ours", "moto", "ministack")}  # requests, by server and size
# Constants that make each benchmark tiny, by the name of its module.
TINY: dict[str, dict[str, Any]] = {
    "limits": {"ROUNDS": 1, "SECONDS": 0.01, "CONNECTIONS": (1, 2)},
    "single_requests": {"ROUNDS": 1, "SECONDS": 0.05, "CONNECTIONS": (1, 4), "READY": 2_000},
    "sqs_requests": {
        "ROUNDS": 1,
        "CONNECTIONS": {"ours": 2, "moto": 1, "ministack": 2},
        "RAW": FEW,
        "BOTO3": FEW,
    },
    "single_writes": {"ROUNDS": 1, "SECONDS": 0.05, "CONNECTIONS": 4, "WARM_UP": 0.05},
    "postgres_writes": {"ROUNDS": 1, "SECONDS": 0.05, "CLIENTS": (1, 2)},
    "batches": {"ROUNDS": 1, "SECONDS": 0.02, "SIZES": (10,)},
    "table_layouts": {"ROUNDS": 1, "MESSAGES": 4, "SIZES": (60,)},
    "long_polls": {
        "ROUNDS": 1,
        "SECONDS": 0.1,
        "WAKES": 2,
        "WRITERS": 2,
        "READERS": 2,
        "POLLERS": 2,
        "IDLE": 0.1,
        "CROWD": 20,
        "CROWD_QUEUES": 4,
        "CROWD_SETTLES": 1.0,
        "CROWD_IDLE": 0.1,
    },
    "backlog": {"ROUNDS": 1, "READS": 2, "SECONDS": 0.01, "SIZES": ((20, 0), (50, 50))},
    "features": {"ROUNDS": 1, "BACKLOG": 10_000, "MESSAGES": {100: 100}},
    "file_copy": {"ROUNDS": 1, "LINES": 50, "SINGLE_LINES": 5},
    "memory": {"MESSAGES": 50, "WARM_UP": 10, "STEP": 10, "BATCH": 10},
    "file_size": {"STAY": 20, "COME_AND_GO": 30, "BATCH": 10, "TIDIES_WITHIN": 0.1},
    "peers": {"ROUNDS": 1, "CLIENTS": 2, "SECONDS": {1: 0.05, 2: 0.05}, "LINES": 50},
}


@pytest.fixture(autouse=True)
def small_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "1")


def shrink(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module(f"benchmarks.{name}")
    for constant, value in TINY[name].items():
        monkeypatch.setattr(module, constant, value)
    return module


def test_every_benchmark_has_a_tiny_form() -> None:
    assert set(TINY) == set(command.NAMES)


@pytest.mark.parametrize("name", [name for name in TINY if name != "peers"])
def test_a_benchmark_returns_figures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[Result] = getattr(shrink(name, monkeypatch), name)()
    assert results
    for result in results:
        assert result.figures
        assert all(figure.ratio >= 0 for figure in result.figures)
        assert result.figures[0].what in report.table(result)


def test_a_benchmark_whose_requests_have_no_effect_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier benchmark found no receipt in the replies, so it leased instead of acking."""
    module = shrink("single_requests", monkeypatch)
    monkeypatch.setitem(module.KINDS, "lease, ack", module.LEASE)
    with pytest.raises(RuntimeError, match=r"requests of 'lease, ack' did \{'received': [0-9]+, 'acked': 0\}"):
        module.single_requests()


def test_a_benchmark_that_deletes_no_message_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    module = shrink("sqs_requests", monkeypatch)
    actions = module._actions
    monkeypatch.setattr(module, "PEERS", {})

    def without_effect(url: str, size: int) -> Any:
        return *actions(url, size)[:2], lambda _: ("GetQueueUrl", {"QueueName": "bench"})

    monkeypatch.setattr(module, "_actions", without_effect)
    with pytest.raises(RuntimeError, match="ours: 4 of 4 messages came out, 4 are left"):
        module.sqs_requests()


def test_the_load_connects_again_to_a_server_that_closes_and_ends_with_its_script() -> None:
    class Closing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"x")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Closing) as server:
        threading.Thread(target=server.serve_forever).start()
        requests = iter([load.request("GET", "/")] * 7)
        done = load.run(server.server_port, lambda _: next(requests, b""), 3, math.inf)
        server.shutdown()
    assert (done.done, done.failed) == (7, 0)


def test_the_working_tree_is_compared_with_another_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("single_requests", "batches", "file_copy"):
        shrink(name, monkeypatch)
    monkeypatch.setattr(against, "CONNECTIONS", (1,))
    monkeypatch.setattr(against, "ROUNDS", 1)
    one, many = against.against("HEAD")
    assert [figure.what for figure in one.figures][:3] == ["write: rate", "write: CPU", "write: p99"]
    assert many.figures[-1].what == "a file copied"
    assert one.other == "HEAD"


def test_the_comparison_runs_and_reports_why_it_left_out_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amqp", None)  # makes the import fail, as if it were not installed
    monkeypatch.delitem(sys.modules, "benchmarks.queues.rabbitmq", raising=False)
    shrink("peers", monkeypatch)
    *_, last = peers.peers(["rabbitmq"])
    ours, rabbitmq = last.notes
    assert ours.startswith("ours: gunicorn")
    assert "rabbitmq was not measured: the Python package of amqp is not installed" in rabbitmq
    assert last.faults == []


def test_the_plain_application_uses_the_plain_store(tmp_path: Path) -> None:
    app = PlainApplication(Settings(database_url=f"sqlite:///{tmp_path}/queue.db"))
    with closing(app):
        assert isinstance(app.store, PlainStore)
        assert app.store.send("q", [NewMessage("a")]).ids == [1]


def test_the_error_for_a_missing_server_names_its_package() -> None:
    with pytest.raises(NotInstalled, match=r"no-such-server is not installed .* such-servers"):
        program("no-such-server", "such-servers", "/usr/sbin")


def test_the_error_for_a_missing_package_names_it() -> None:
    with pytest.raises(NotInstalled, match="the Python package of no-such-package is not installed"):
        versions("no-such-package")


def test_processes_start_together_and_an_error_in_one_is_raised_here() -> None:
    first, second = run_jobs([(wait_for_start, (1,)), (wait_for_start, (2,))])
    assert min(first.began, second.began) >= max(first.result, second.result)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_jobs([(wait_for_start, (1,)), (wait_for_start, (0,))])


def wait_for_start(start: Start, number: int) -> float:
    """Wait for the common start; return the time at which this process was ready."""
    assert 1 / number
    ready = time.monotonic()
    start()
    return ready


BOTH = Result(
    "ours",
    "other",
    [
        Figure("good & <fast>", "9/s", "3/s", 3.0, at_least=2.0),
        Figure("slow", "1/s", "2/s", 0.5, at_least=0.8),
        Figure("other unit", "1 MiB", "2 MiB", 0.5, unit="MiB off"),
    ],
    "half",
    plot="a plot",
)


def test_the_plot_has_a_proportional_bar_for_each_ratio_and_marks_missed_targets() -> None:
    picture = ElementTree.fromstring(plot.svg([BOTH, Result("a", "b", [Figure("none", "1", "1", 1.0)])]))
    bars = {bar[0].text: bar for bar in picture.iter(f"{SVG}rect")}
    good, slow = bars["good & <fast>: 9/s to 3/s"], bars["slow: 1/s to 2/s"]
    assert len(bars) == 2  # one figure has another unit, and one result has no plot
    assert (good.get("class"), slow.get("class")) == ("bar", "missed")
    even = float(next(line for line in picture.iter(f"{SVG}line") if line.get("class") == "even").get("x1", ""))
    assert float(good.get("x", "")) == even
    assert float(slow.get("x", "")) + float(slow.get("width", "")) == pytest.approx(even, abs=0.2)
    longer = float(good.get("width", "")) / float(slow.get("width", ""))
    assert longer == pytest.approx(math.log(3, 2), abs=0.01)


def test_the_plot_supports_light_and_dark_pages() -> None:
    assert "@media (prefers-color-scheme: dark)" in plot.svg([BOTH])


def test_the_command_lists_missed_targets_and_draws_the_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shrink("batches", monkeypatch), "batches", lambda: [BOTH])
    assert command.main(["batches", "--plot", str(tmp_path / "plot.svg")]) == 1
    assert capsys.readouterr().out.endswith("MISSED  batches: half: slow\n")
    assert (tmp_path / "plot.svg").read_text() == plot.svg([BOTH])
