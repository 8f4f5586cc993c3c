"""Tables of figures at the end of a test run: each test that measures something adds a row.

Rows with the same columns, in the same order, are in one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

Cells = Mapping[str, object]


class AddRow(Protocol):
    """Adds a row: the value of each column, by the column's name."""

    def __call__(self, **cells: object) -> None: ...


def tables(rows: Iterable[Cells]) -> Iterator[str]:
    """Yield the tables in Markdown, line by line; rows keep their order."""
    sorted_by_table: dict[tuple[str, ...], list[Cells]] = {}
    for row in rows:
        sorted_by_table.setdefault(tuple(row), []).append(row)
    for columns, members in sorted_by_table.items():
        yield ""
        yield _line(column.replace("_", " ") for column in columns)
        yield _line("---" for _ in columns)
        yield from (_line(_formatted(cell) for cell in row.values()) for row in members)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _formatted(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
