"""Results of commands: tables for people, a line of JSON each for programs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence

NARROWEST = 20  # columns for the last cell


def print_json(document: Mapping[str, object]) -> None:
    print(json.dumps(document, ensure_ascii=False), flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with numbers to the right. On a terminal a long last cell is cut."""
    cells = [list(head), *([_text(value) for value in row] for row in rows)]
    numbers = {column for row in rows for column, value in enumerate(row) if isinstance(value, int | float)}
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = max(NARROWEST, shutil.get_terminal_size().columns - sum(widths[:-1]) - 2 * (len(head) - 1))
    lines = []
    for row in cells:
        if sys.stdout.isatty() and len(row[-1]) > room:
            row[-1] = row[-1][: room - 1] + "…"
        padded = (
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def age(seconds: float) -> str:
    """Return a duration in its two largest units, for example 3d4h."""
    left, parts = int(seconds), list[str]()
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def _text(value: object) -> str:
    """Return a cell on one line, with nothing in it that a terminal would obey."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))
