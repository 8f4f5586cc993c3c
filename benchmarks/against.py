"""another revision of this repository, in turns: requests of one message, batches, and a file copied."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import batches, file_copy, single_requests
from benchmarks.call import Caller, batch_of, run_of
from benchmarks.report import Figure, Result, compare, ms, ours_to_other, per_second, percentile, seconds, us
from benchmarks.server import REPOSITORY, Service, service
from benchmarks.single_requests import KINDS, Sample

CONNECTIONS = (1, 16, 64)
ROUNDS = 3
SIZES = (100, 1_000)


class Side(NamedTuple):
    server: Service
    caller: Caller


def against(revision: str) -> list[Result]:
    with checked_out(revision) as tree, ExitStack() as stack:
        sides = []
        for server in (stack.enter_context(service()), stack.enter_context(service(tree=tree))):
            sides.append(Side(server, stack.enter_context(closing(Caller(server.port)))))
        ours, other = sides
        found = [_singly(ours, other, connections) for connections in CONNECTIONS]
        figures = [*_batches(ours, other), _copied(ours, other)]
    return [one._replace(other=revision) for one in (*found, Result("this tree", revision, figures, "many messages"))]


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """The files of a revision, for as long as the block runs."""
    packed = subprocess.run(["git", "archive", revision], cwd=REPOSITORY, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory(prefix="queue-bench-") as folder:
        subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
        yield Path(folder)


def _singly(ours: Side, other: Side, connections: int) -> Result:
    rounds: dict[str, list[tuple[Sample, Sample]]] = {kind: [] for kind in KINDS}
    for number in range(ROUNDS + 1):
        for side in (ours, other):
            single_requests.fill(side.caller)
        for kind, samples in rounds.items():
            pair = [single_requests.sample(side.server, side.caller, kind, connections) for side in (ours, other)]
            if number:  # the first is to warm up
                samples.append((pair[0], pair[1]))
        for side in (ours, other):
            single_requests.empty(side.caller)
    figures: list[Figure] = []
    for kind, samples in rounds.items():
        p99 = [(percentile(a.load.latencies, 0.99), percentile(b.load.latencies, 0.99)) for a, b in samples]
        figures += [
            compare(f"{kind}: rate", [(a.load.rate, b.load.rate) for a, b in samples], per_second, ratio=ours_to_other),
            compare(f"{kind}: CPU", [(a.cpu, b.cpu) for a, b in samples], us, ratio=ours_to_other),
            compare(f"{kind}: p99", p99, ms, ratio=ours_to_other),
        ]
    return Result("this tree", "", figures, f"one message a request, {connections} connections")


def _batches(ours: Side, other: Side) -> Iterator[Figure]:
    for size in SIZES:
        rounds = [(_batch_rates(ours.caller, size), _batch_rates(other.caller, size)) for _ in range(ROUNDS + 1)][1:]
        for what in rounds[0][0]:
            yield compare(
                f"{what} by {size:,}", [(a[what], b[what]) for a, b in rounds], per_second, ratio=ours_to_other
            )


def _batch_rates(caller: Caller, size: int) -> dict[str, float]:
    batch, run = batch_of(size), run_of(size)
    return {
        "sent": batches.send(caller, lambda: caller.send("batches", batch), size),
        "leased, acked": batches.take(caller, caller.lease, size),
        "sent as runs": batches.send(caller, lambda: caller.send_run("batches", run), size),
        "leased, acked as runs": batches.take(caller, caller.lease_runs, size),
    }


def _copied(ours: Side, other: Side) -> Figure:
    with tempfile.TemporaryDirectory(prefix="queue-bench-") as folder:
        source = Path(folder, "source")
        source.write_text(f"{file_copy.LINE}\n" * file_copy.LINES)
        rounds = [tuple(file_copy.copy(source, side.server.url) for side in (ours, other)) for _ in range(ROUNDS)]
    return compare("a file copied", [(a, b) for a, b in rounds], seconds, ratio=ours_to_other)
