"""Test that mutation testing mutates all code that runs, and only that."""

from __future__ import annotations

import ast
import random

import pytest

from tests.repository.mutation import evenly, mutants_of
from tests.support.live import REPOSITORY


@pytest.mark.parametrize(
    ("source", "mistaken"),
    [
        ("if left < most and not gone: pass", ["if left <= most and not gone: pass", "if left < most or not gone: pass",
                                               "if left < most and gone: pass"]),
        ("x = min(a, 5)", ["x = max(a, 5)", "x = min(a, (5 + 1))"]),
        ("work.count(queue)\n", ["pass\n"]),
        ("SQL = 'SELECT 1 WHERE id > ? AND due IS NULL'", [
            "SQL = 'SELECT 0 WHERE id > ? AND due IS NULL'", "SQL = 'SELECT 1 WHERE id >= ? AND due IS NULL'",
            "SQL = 'SELECT 1 WHERE id > ? OR due IS NULL'", "SQL = 'SELECT 1 WHERE id > ? AND due IS NOT NULL'",
        ]),
        ("def f(x: int | None) -> bool: ...", []),
        ("assert 1 < 2", []),
        ("x = a << b, c >> d", []),
    ],
)  # fmt: skip
def test_each_executable_place_is_mutated_once(source: str, mistaken: list[str]) -> None:
    assert [mutant.within(source) for mutant in mutants_of("a.py", source)] == mistaken


def test_sql_is_mutated_but_not_its_comments() -> None:
    source = "-- a < b\nDELETE FROM m WHERE a < b;"
    assert [mutant.within(source) for mutant in mutants_of("a.sql", source)] == [source.replace("a < b;", "a <= b;")]


@pytest.mark.parametrize("folder", ["storage", "clients"])
def test_a_mutated_module_is_still_python(folder: str) -> None:
    """Otherwise any test would notice it."""
    for path in sorted((REPOSITORY / folder).rglob("*.py"))[::5]:
        source = path.read_text()
        for mutant in mutants_of(str(path), source):
            ast.parse(mutant.within(source))


def test_a_sample_has_as_many_mutants_of_a_short_file_as_of_a_long_one() -> None:
    long, short = mutants_of("long.py", "x = 1 + 2 + 3 + 4"), mutants_of("short.py", "x = 1 < 2")
    sample = [mutant.path for mutant in evenly([long, short], random.Random(1))]
    assert sample[:6] == ["long.py", "short.py"] * 3
    assert sample[6:] == ["long.py"] * (len(long) - 3)
