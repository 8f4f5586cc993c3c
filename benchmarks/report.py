"""The results of a benchmark, and their table of ratios, each beside its required bound."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import apsw

FASTEST_DISK = 20e-6  # seconds: no real disk has a faster fsync


class Figure(NamedTuple):
    """One row: two formatted values, and their ratio. A bound of None requires nothing."""

    what: str
    ours: str
    other: str
    ratio: float
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "×"  # of the ratio and its bounds

    @property
    def required(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g} {self.unit}"
        return "" if self.at_most is None else f"≤ {self.at_most:g} {self.unit}"

    @property
    def missed(self) -> bool:
        return (self.at_least is not None and self.ratio < self.at_least) or (
            self.at_most is not None and self.ratio > self.at_most
        )

    @property
    def verdict(self) -> str:
        return "" if not self.required else "MISSED" if self.missed else "reached"


class Result(NamedTuple):
    """The results of a benchmark; `ours` and `other` are the headings of the compared columns.

    `title` distinguishes several results of one benchmark. `notes` appear below the table, and so do `faults`, which
    count as missed. `plot` is the title of the ratios in the plot; None leaves them out.
    """

    ours: str
    other: str
    figures: list[Figure]
    title: str = ""
    notes: Sequence[str] = ()
    faults: Sequence[str] = ()
    plot: str | None = None

    @property
    def missed(self) -> list[str]:
        """Return the figures outside their bounds, and the faults."""
        where = f"{self.title}: " if self.title else ""
        return [f"{where}{figure.what}" for figure in self.figures if figure.missed] + list(self.faults)


def compare(
    what: str,
    rounds: Sequence[tuple[float, float]],
    show: Callable[[float], str],
    *,
    ratio: Callable[[float, float], float],
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """Return a figure of (ours, other) in alternating rounds: both medians, and the median of the rounds' ratios."""
    ours, other = (statistics.median(values) for values in zip(*rounds, strict=True))
    return Figure(what, show(ours), show(other), statistics.median(ratio(*pair) for pair in rounds), at_least, at_most)


def ours_to_other(ours: float, other: float) -> float:
    return ours / other


def other_to_ours(ours: float, other: float) -> float:
    return other / ours


def table(result: Result) -> str:
    """Format the figures as a table."""
    rows = [("", result.ours, result.other, "ratio", "required", "")]
    rows += [(f.what, f.ours, f.other, f"{f.ratio:.2f} {f.unit}", f.required, f.verdict) for f in result.figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: tuple[str, ...]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return f"  {'  '.join(cells)}".rstrip()

    lines = [f"  {result.title}"] if result.title else []
    lines += map(line, rows)
    return "\n".join(lines + [f"  {note}" for note in (*result.notes, *result.faults)])


def machine() -> str:
    """Describe the machine and the programs, in a few lines."""
    seconds = fsync_time()
    warning = "; this is no disk: set TMPDIR to a directory on one" if seconds < FASTEST_DISK else ""
    return "\n".join(
        [
            f"machine   {os.cpu_count()} cores, {platform.system()} {platform.release()} {platform.machine()}, "
            f"load {os.getloadavg()[0]:.1f}",
            f"programs  Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}, "
            f"gunicorn {version('gunicorn')}, Bottle {version('bottle')}",
            f"disk      {tempfile.gettempdir()}: 4 KiB appended and fsynced in {us(seconds)} (median){warning}",
        ]
    )


def fsync_time(rounds: int = 300) -> float:
    """Return the median seconds of an append of 4 KiB and an fsync in the temporary directory."""
    sync = getattr(os, "fdatasync", os.fsync)
    seconds = []
    with tempfile.TemporaryDirectory(prefix="queue-bench-") as folder, Path(folder, "file").open("wb", 0) as file:
        for _ in range(rounds):
            start = time.perf_counter()
            file.write(bytes(4096))
            sync(file.fileno())
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def percentile(ascending: Sequence[float], share: float) -> float:
    """Return a percentile; `share` is 0.99 for p99."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * share))]


def per_second(rate: float) -> str:
    return f"{rate:,.0f}/s"


def seconds(taken: float) -> str:
    return f"{taken:.1f} s"


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def us(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs"
