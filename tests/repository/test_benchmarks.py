"""The benchmarks run, and tell what they found. In a tiny form: what they measure here means nothing."""

from __future__ import annotations

import importlib
import math
import sys
import time
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import against, peers, plot, report
from benchmarks.one_transaction_each import PlainApplication, PlainStore
from benchmarks.processes import Start, run_jobs
from benchmarks.queues.peer import NotInstalled, program
from benchmarks.report import Figure, Result
from settings import Settings
from storage.model import NewMessage

SVG = "{http://www.w3.org/2000/svg}"

# What makes each of them tiny, by the name of its module.
TINY: dict[str, dict[str, Any]] = {
    "limits": {"ROUNDS": 1, "SECONDS": 0.01, "CONNECTIONS": (1, 2)},
    "single_requests": {"ROUNDS": 1, "SECONDS": 0.05, "CONNECTIONS": (1, 4), "READY": 2_000},
    "single_writes": {"ROUNDS": 1, "SECONDS": 0.05, "CONNECTIONS": 4, "WARM_UP": 0.05},
    "batches": {"ROUNDS": 1, "SECONDS": 0.02, "SIZES": (10,)},
    "long_polls": {"ROUNDS": 1, "SECONDS": 0.1, "WAKES": 2, "WRITERS": 2, "READERS": 2, "POLLERS": 2, "IDLE": 0.1},
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


def test_every_benchmark_is_tried_here() -> None:
    assert set(TINY) == set(command.NAMES)


@pytest.mark.parametrize("name", [name for name in TINY if name != "peers"])
def test_a_benchmark_finds_figures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Result] = getattr(shrink(name, monkeypatch), name)()
    assert found
    for one in found:
        assert one.figures
        assert all(figure.ratio >= 0 for figure in one.figures)
        assert one.figures[0].what in report.table(one)


def test_a_benchmark_whose_requests_do_not_do_their_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one did that found no receipt in a reply, and leased where it should ack."""
    module = shrink("single_requests", monkeypatch)
    monkeypatch.setitem(module.KINDS, "lease, ack", module.LEASE)
    with pytest.raises(RuntimeError, match=r"requests of 'lease, ack' did \{'received': [0-9]+, 'acked': 0\}"):
        module.single_requests()


def test_this_tree_is_measured_against_another_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("single_requests", "batches", "file_copy"):
        shrink(name, monkeypatch)
    monkeypatch.setattr(against, "CONNECTIONS", (1,))
    monkeypatch.setattr(against, "ROUNDS", 1)
    one, many = against.against("HEAD")
    assert [figure.what for figure in one.figures][:3] == ["write: rate", "write: CPU", "write: p99"]
    assert many.figures[-1].what == "a file copied"
    assert one.other == "HEAD"


def test_the_contest_runs_and_tells_why_a_peer_is_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amqp", None)  # as Python has it for a module that is not there
    monkeypatch.delitem(sys.modules, "benchmarks.queues.rabbitmq", raising=False)
    shrink("peers", monkeypatch)
    *_, last = peers.peers(["rabbitmq"])
    ours, rabbitmq = last.notes
    assert ours.startswith("ours: gunicorn")
    assert "rabbitmq was not measured: the Python package of amqp is not installed" in rabbitmq
    assert last.faults == []


def test_the_plain_design_is_what_requests_meet(tmp_path: Path) -> None:
    app = PlainApplication(Settings(database_url=f"sqlite:///{tmp_path}/queue.db"))
    with closing(app):
        assert isinstance(app.store, PlainStore)
        assert app.store.send("q", [NewMessage("a")]).ids == [1]


def test_a_server_that_is_not_installed_is_told_with_the_package_that_has_it() -> None:
    with pytest.raises(NotInstalled, match=r"no-such-server is not installed .* such-servers"):
        program("no-such-server", "such-servers", "/usr/sbin")


def test_processes_start_together_and_what_one_of_them_raises_comes_back() -> None:
    first, second = run_jobs([(meet, (1,)), (meet, (2,))])
    assert min(first.began, second.began) >= max(first.result, second.result)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_jobs([(meet, (1,)), (meet, (0,))])


def meet(start: Start, number: int) -> float:
    """When it was ready to start."""
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


def test_the_plot_has_a_bar_for_each_ratio_that_grows_with_it_and_shows_what_was_missed() -> None:
    picture = ElementTree.fromstring(plot.svg([BOTH, Result("a", "b", [Figure("none", "1", "1", 1.0)])]))
    bars = {bar[0].text: bar for bar in picture.iter(f"{SVG}rect")}
    good, slow = bars["good & <fast>: 9/s to 3/s"], bars["slow: 1/s to 2/s"]
    assert len(bars) == 2  # one has another unit, one is of no plot
    assert (good.get("class"), slow.get("class")) == ("bar", "missed")
    even = float(next(line for line in picture.iter(f"{SVG}line") if line.get("class") == "even").get("x1", ""))
    assert float(good.get("x", "")) == even
    assert float(slow.get("x", "")) + float(slow.get("width", "")) == pytest.approx(even, abs=0.2)
    longer = float(good.get("width", "")) / float(slow.get("width", ""))
    assert longer == pytest.approx(math.log(3, 2), abs=0.01)


def test_the_plot_is_for_light_pages_and_dark_ones() -> None:
    assert "@media (prefers-color-scheme: dark)" in plot.svg([BOTH])


def test_the_command_names_what_was_missed_and_draws_the_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shrink("batches", monkeypatch), "batches", lambda: [BOTH])
    assert command.main(["batches", "--plot", str(tmp_path / "plot.svg")]) == 1
    assert capsys.readouterr().out.endswith("MISSED  batches: half: slow\n")
    assert (tmp_path / "plot.svg").read_text() == plot.svg([BOTH])
