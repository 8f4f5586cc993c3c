"""the same work for this service and for other queues, each with an fsync before it confirms.

Texts of 60 bytes, sent with a confirm, received and acked, by Python clients in their own processes. One at a time, by
1 client and by 16. In batches, by one process that sends and one that receives. And a file of 100,000 lines, copied in
order by two such processes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.queues import work
from benchmarks.queues.peer import NAMES, OURS, NotInstalled, Peer, Server, load
from benchmarks.queues.work import Run
from benchmarks.report import Figure, Result, compare, other_to_ours, ours_to_other, per_second

CLIENTS = 16
ROUNDS = 3
SECONDS = {1: 1.5, CLIENTS: 2.0}  # of one round, by the number of clients
LINES = 100_000
TRIAL = 200  # messages in a trial that estimates how many lines …
LONGEST = 3.0  # … a slow peer copies in so many seconds
SINGLE_LEAST = {"PostgreSQL": 0.7}  # times their rates, one at a time by 1 client …
SHARED_LEAST = {"PostgreSQL": 1.1, "NATS JetStream": 1.0, "litequeue": 1.0, "RabbitMQ": 0.9}  # … and by CLIENTS


class Round(NamedTuple):
    one: Run
    many: Run | None  # None if only one process may read
    batched: Run
    copied: Run


class _Contest:
    """The measured queues, their servers, and the results of each, round by round."""

    def __init__(self, folder: Path, stack: ExitStack, names: Sequence[str]) -> None:
        self._folder = folder
        self.peers: dict[str, Peer] = {}
        self.rounds: dict[str, list[Round]] = {}
        self.notes: list[str] = []
        self.faults: list[str] = []
        self._servers: dict[str, Server] = {}
        self._lines: dict[str, int] = {}
        for name in (OURS, *names):
            try:
                self.peers[name] = load(name)
                self._attempt(name, partial(self._start, name, self.peers[name].version(), stack))
            except NotInstalled as reason:
                self.peers.pop(name, None)
                self.notes.append(f"{name} was not measured: {reason}")

    def run(self) -> None:
        for _ in range(ROUNDS):
            for name in list(self.peers):
                self._attempt(name, partial(self._round, name))

    def _attempt(self, name: str, step: Callable[[], None]) -> None:
        """Run a step of a peer. Report and drop a peer that fails; if it is ours, end the benchmark."""
        try:
            step()
        except (RuntimeError, OSError) as fault:
            if name == OURS:
                raise
            self.faults.append(f"{self.peers.pop(name).name} FAILED: {fault}")

    def _start(self, name: str, version: str, stack: ExitStack) -> None:
        peer = self.peers[name]
        self.rounds[name] = []
        private = self._folder / name
        private.mkdir()
        server = self._servers[name] = stack.enter_context(peer.serve(private))
        lines = self._lines[name] = LINES if name == OURS else _lines_in_time(name, server)
        note = f"{peer.name}: {version}"
        note += f"; {peer.note}" if peer.note else ""
        note += f"; {lines:,} lines" if lines < LINES else ""
        self.notes.append(note)

    def _round(self, name: str) -> None:
        server, lines = self._servers[name], self._lines[name]
        source = self._folder / "source"
        source.write_text("".join(f"{number:060}\n" for number in range(lines)))
        this = Round(
            work.one_at_a_time(name, server, 1, SECONDS[1]),
            work.one_at_a_time(name, server, CLIENTS, SECONDS[CLIENTS]) if self.peers[name].shared else None,
            work.batched(name, server, lines),
            work.copied(name, server, source, self._folder / "target"),
        )
        self.rounds[name].append(this)


def peers(names: Sequence[str] = NAMES) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="queue-bench-") as folder, ExitStack() as stack:
        contest = _Contest(Path(folder), stack, names)
        contest.run()
    single = _rates(contest, "one at a time, 1 client", lambda round_: round_.one, SINGLE_LEAST)
    copied = _rates(contest, "a file copied, lines", lambda round_: round_.copied)
    durable = [name for name, peer in contest.peers.items() if peer.durable and name != OURS]
    if durable:
        fastest = max(durable, key=lambda name: sorted(r.copied.rate for r in contest.rounds[name])[ROUNDS // 2])
        pairs = _pairs(contest, fastest, lambda round_: round_.copied)
        what = f"the fastest durable peer: {contest.peers[fastest].name}"
        copied.figures.append(compare(what, [(a.rate, b.rate) for a, b in pairs], per_second, ratio=ours_to_other))
    return [
        single,
        _rates(contest, f"one at a time, {CLIENTS} clients", lambda round_: round_.many, SHARED_LEAST),
        _rates(contest, "in batches, one process sends and one receives", lambda round_: round_.batched),
        copied,
        _cpu(contest, "CPU of a message, one at a time, 1 client", lambda round_: round_.one),
        _cpu(contest, "CPU of a message, in batches", lambda round_: round_.batched)._replace(
            notes=contest.notes, faults=contest.faults
        ),
    ]


def _lines_in_time(name: str, server: Server) -> int:
    """Return how many lines, at most LINES, the peer copies within LONGEST."""
    trial, count = work.batched(name, server, TRIAL), TRIAL
    while trial.seconds < LONGEST / 10 and count < LINES:  # the start took most of the time
        count = min(LINES, count * 10)
        trial = work.batched(name, server, count)
    return min(LINES, max(TRIAL, int(round(trial.rate * LONGEST, -2))))


def _rates(
    contest: _Contest,
    title: str,
    kind: Callable[[Round], Run | None],
    least: Mapping[str, float] | None = None,
) -> Result:
    figures = [
        compare(
            peer.name,
            [(a.rate, b.rate) for a, b in pairs],
            per_second,
            ratio=ours_to_other,
            at_least=(least or {}).get(peer.name),
        )
        for name, peer in contest.peers.items()
        if name != OURS and (pairs := _pairs(contest, name, kind))
    ]
    return Result("ours", "the other", figures, title, plot=f"{title}: our rate relative to the other's")


def _cpu(contest: _Contest, title: str, kind: Callable[[Round], Run | None]) -> Result:
    figures = []
    for name, peer in contest.peers.items():
        if name != OURS and (pairs := _pairs(contest, name, kind)):
            whole = compare("", [(_cpu_of(a), _cpu_of(b)) for a, b in pairs], str, ratio=other_to_ours)
            figures.append(
                Figure(peer.name, _format([a for a, _ in pairs]), _format([b for _, b in pairs]), whole.ratio)
            )
    return Result("ours: client + server", "the other", figures, title)


def _pairs(contest: _Contest, name: str, kind: Callable[[Round], Run | None]) -> list[tuple[Run, Run]]:
    """Return our run and the other's of each round."""
    both = zip(map(kind, contest.rounds[OURS]), map(kind, contest.rounds[name]), strict=True)
    return [(ours, other) for ours, other in both if ours is not None and other is not None]


def _cpu_of(run: Run) -> float:
    return (run.client_cpu + run.server_cpu) / run.messages


def _format(runs: list[Run]) -> str:
    """Format the CPU of the median run."""
    run = sorted(runs, key=_cpu_of)[len(runs) // 2]
    return f"{run.client_cpu / run.messages * 1e6:,.0f} + {run.server_cpu / run.messages * 1e6:,.0f} µs"
