"""The command: run the named benchmarks (or all), print the results, exit 1 if a required ratio was missed."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import plot, report, server
from benchmarks.against import against
from benchmarks.queues.peer import NAMES as PEERS
from benchmarks.report import Result

NAMES = (
    "limits",
    "single_requests",
    "sqs_requests",
    "single_writes",
    "postgres_writes",
    "batches",
    "table_layouts",
    "long_polls",
    "backlog",
    "features",
    "file_copy",
    "memory",
    "file_size",
    "peers",
)
# The benchmarks of PostgreSQL need Debian's servers (.ci/get-programs).
ONLY_NAMED = ("deep_backlog", "nodes", "sustained")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the service; only ratios count.")
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help=f"of {', '.join(NAMES)} (default: all of these), {', '.join(ONLY_NAMED)}; or of the peers alone: "
        f"{', '.join(PEERS)}",
    )
    parser.add_argument("--against", metavar="REV", help="measure this tree against another revision, in turns")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the ratios as an SVG")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - {*NAMES, *ONLY_NAMED, *PEERS}:
        parser.error(f"there is no benchmark '{min(unknown)}'; there are {', '.join((*NAMES, *ONLY_NAMED, *PEERS))}")
    print(report.machine(), server.settings(), sep="\n", flush=True)
    chosen = [("against", partial(against, options.against))] if options.against else _chosen(options.names)
    results = [result for name, run in chosen for result in _run(name, run)]
    if options.plot:
        options.plot.write_text(plot.svg([result for _, result in results]), encoding="utf-8")
    missed = [f"{name}: {what}" for name, result in results for what in result.missed]
    print("", *[f"MISSED  {what}" for what in missed] or ["Every required figure was reached."], sep="\n")
    return 1 if missed else 0


def _chosen(names: list[str]) -> list[tuple[str, Callable[[], list[Result]]]]:
    """Return the benchmarks in the order of NAMES. Measure named peers together, as one benchmark."""
    peers = [name for name in PEERS if name in names]
    wanted = names or NAMES
    chosen: list[tuple[str, Callable[[], list[Result]]]] = []
    for name in (*NAMES, *ONLY_NAMED):
        if name in wanted or (name == "peers" and peers):
            benchmark = getattr(importlib.import_module(f"benchmarks.{name}"), name)
            few = name == "peers" and peers and name not in wanted
            chosen.append((name, partial(benchmark, peers) if few else benchmark))
    return chosen


def _run(name: str, benchmark: Callable[[], list[Result]]) -> list[tuple[str, Result]]:
    start = time.monotonic()
    print(f"\n{name}: {str(sys.modules[f'benchmarks.{name}'].__doc__).splitlines()[0]}", flush=True)
    results = benchmark()
    print(*map(report.table, results), f"  ({time.monotonic() - start:.0f} s)", sep="\n", flush=True)
    return [(name, result) for result in results]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
