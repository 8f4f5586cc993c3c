"""The tables that stand at the end of a run: each test that measures something tells a row.

A table is told by its columns: rows with the same ones, in the same order, stand in one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

Cells = Mapping[str, object]


class Tell(Protocol):
    """Tells a row: what stands in each column, by the column's name."""

    def __call__(self, **cells: object) -> None: ...


def tables(rows: Iterable[Cells]) -> Iterator[str]:
    """Markdown, a line at a time; rows are in the order in which they were told."""
    sorted_by_table: dict[tuple[str, ...], list[Cells]] = {}
    for row in rows:
        sorted_by_table.setdefault(tuple(row), []).append(row)
    for columns, members in sorted_by_table.items():
        yield ""
        yield _line(column.replace("_", " ") for column in columns)
        yield _line("---" for _ in columns)
        yield from (_line(_told(cell) for cell in row.values()) for row in members)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _told(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
