"""Mutation testing: puts one small mistake at a time into a copy of the tree and runs the tests of its module.

`tox run -e mutation` prints each mistake and the test that noticed it. A test unrelated to the mistake is unreliable.
It tries a sample, drawn by `--seed` as evenly as possible from each file, for `--minutes`. mutmut and cosmic-ray cannot
change SQL, which is half of this project's logic.
"""

from __future__ import annotations

import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise, zip_longest
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.support.live import REPOSITORY

# The tests of a module: those of the first pattern that its path matches. A failure ends them: quick ones first.
TESTS: dict[str, list[str]] = {
    r"storage/postgres/(migration|maintenance)\.py": [
        "tests/storage/test_migration.py", "tests/storage/postgres/test_store.py", "-k", "postgres",
        "tests/storage/postgres/test_upgrade.py",
    ],
    r"storage/(sqlite/)?(migration|maintenance|contents|__main__)\.py": [
        "tests/storage/test_migration.py", "tests/storage/test_tools.py",
    ],
    r"storage/sqlite/(disk/.*|upkeep|snapshot|expiry)\.py|storage/clock\.py": [
        "tests/conformance", "-k", "sqlite or commit or clock or wal or waiting or tools", "tests/storage/sqlite",
        "tests/storage/test_clock_steps.py", "tests/faults/test_clock.py", "tests/storage/test_waiting.py",
        "tests/storage/test_tools.py",
    ],
    r"storage/(waiting|scheduling)\.py": [
        "tests/storage/test_waiting.py", "tests/conformance", "-k", "waiting or sqlite",
        "tests/storage/test_wake_ups.py",
    ],
    r"storage/sqlite/.*": ["tests/conformance", "tests/storage/test_steps.py", "tests/models/test_states.py",
                           "tests/storage/sqlite", "-k", "not postgres"],
    r"storage/postgres/.*": ["tests/conformance", "-k", "postgres", "tests/storage/postgres",
                             "tests/storage/test_steps.py", "tests/storage/sqlite/test_query_plans.py"],
    r"storage/errors\.py": ["tests/http/test_handler.py", "tests/conformance", "-k", "not postgres"],
    r"storage/.*": ["tests/conformance", "tests/storage/test_steps.py", "tests/models/test_states.py",
                    "tests/storage/sqlite/test_column_batches.py", "tests/repository/test_layers.py",
                    "tests/http/test_numbers.py", "tests/http/test_hostile_input.py", "-k", "not postgres"],
    r"clients/(copy|cli/).*": ["tests/clients/test_copy_file.py", "tests/clients/cli"],
    r"clients/aio/.*": ["tests/clients/aio", "tests/clients/test_worker.py", "-k", "asyncio and not postgres or aio"],
    r"clients/consuming/.*": ["tests/clients/test_worker.py", "tests/clients/test_consuming.py", "-k", "not postgres"],
    r"clients/.*": ["tests/clients/test_connection_pool.py", "tests/storage/sqlite/test_column_batches.py",
                    "tests/clients/test_tls.py", "tests/clients/test_client.py", "tests/clients/test_consuming.py"],
}  # fmt: skip


class Mutant(NamedTuple):
    """Replaces the text `before` at `start` of a file by `after`."""

    path: str
    start: int
    before: str
    after: str

    def within(self, source: str) -> str:
        """Return the file with the mistake in it."""
        assert source[self.start :].startswith(self.before)
        return source[: self.start] + self.after + source[self.start + len(self.before) :]

    def shown(self, source: str) -> str:
        """Return the place, and its line without and with the mistake."""
        line = source.count("\n", 0, self.start) + 1
        changed = self.within(source).splitlines()[line - 1].strip()
        return f"{self.path}:{line}\n    - {source.splitlines()[line - 1].strip()}\n    + {changed}"


def mutants_of(path: str, source: str) -> list[Mutant]:
    """Return all mutants of a file, in order of place."""
    changes = _in_python(source) if path.endswith(".py") else _in_sql(source)
    return sorted({Mutant(path, *change) for change in changes})


def evenly(every: Sequence[Sequence[Mutant]], chance: random.Random) -> list[Mutant]:
    """Return all mutants of all files in turns, one of each file and then the next of each."""
    turns = zip_longest(*(chance.sample(mutants, len(mutants)) for mutants in every))
    return [mutant for turn in turns for mutant in turn if mutant is not None]


Change = tuple[int, str, str]  # place, old text, new text

_OPERATORS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "is not": "is", "is": "is not",
              "not in": "in", "in": "not in", "and": "or", "or": "and", "+": "-", "-": "+", "*": "+", "//": "*",
              "/": "*"}  # fmt: skip
_WORDS = {"min": "max", "max": "min", "any": "all", "all": "any", "True": "False", "False": "True"}


class _Places:
    """The places of a syntax tree's nodes in its source."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._lines = source.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self._place(node.lineno, node.col_offset)

    def end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._place(node.end_lineno, node.end_col_offset)

    def text(self, node: ast.expr | ast.stmt) -> str:
        return self.source[self.start(node) : self.end(node)]

    def _place(self, line: int, column: int) -> int:
        """Return the offset in characters; the tree counts bytes of UTF-8."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())


def _in_python(source: str) -> Iterator[Change]:
    places = _Places(source)
    tree = ast.parse(source)
    skipped = {id(child) for node in ast.walk(tree) for part in _not_run(node) for child in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) not in skipped:
            yield from _of_node(node, places)


def _not_run(node: ast.AST) -> Iterator[ast.AST]:
    """Return the parts of a node that serve only readers and the type checker."""
    match node:
        case ast.FunctionDef(returns=returns, args=arguments):
            yield from [returns] if returns is not None else []
            yield from (argument.annotation for argument in ast.walk(arguments)
                        if isinstance(argument, ast.arg) and argument.annotation is not None)  # fmt: skip
        case ast.AnnAssign(annotation=annotation):
            yield annotation
        case ast.Assert() | ast.Import() | ast.ImportFrom():
            yield node


def _of_node(node: ast.AST, places: _Places) -> Iterator[Change]:
    match node:
        case ast.Compare(left=left, comparators=comparators):
            for one, other in zip([left, *comparators], comparators, strict=False):
                yield from _between(one, other, places)
        case ast.BoolOp(values=values):
            for one, other in pairwise(values):
                yield from _between(one, other, places)
        case ast.BinOp(left=left, right=right):
            yield from _between(left, right, places)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield places.start(node), places.text(node), places.text(operand)
        case ast.Constant(value=bool() as value):
            yield places.start(node), str(value), str(not value)
        case ast.Constant(value=int() | float()):
            yield places.start(node), places.text(node), f"({places.text(node)} + 1)"
        case ast.Constant(value=str()) | ast.JoinedStr():
            if re.match(r"f?[\"']+\s*(SELECT|INSERT|UPDATE|DELETE|WITH|AND|WHERE|ORDER)\b", places.text(node)):
                yield from (
                    (places.start(node) + at, before, after) for at, before, after in _in_sql(places.text(node))
                )
        case ast.Name(id=name) if name in _WORDS:
            yield places.start(node), name, _WORDS[name]
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Break() | ast.Continue():
            yield places.start(node), places.text(node), "pass"


def _between(one: ast.expr, other: ast.expr, places: _Places) -> Iterator[Change]:
    """Return the place of the operator between two operands."""
    start, end = places.end(one), places.start(other)
    found = re.match(
        r"[\s)]*((?:is\s+not|not\s+in|is|in|and|or)\b|[<>=!]=|//|<<|>>|[<>+*/-](?![*<>]))", places.source[start:end]
    )
    if found is not None and (after := _OPERATORS.get(" ".join(found[1].split()))) is not None:
        yield start + found.start(1), found[1], after


_SQL = [(re.compile(pattern), after) for pattern, after in [
    (r"(?<=\s)<(?=\s)", "<="), (r"(?<=\s)<=(?=\s)", "<"), (r"(?<=\s)>(?=\s)", ">="), (r"(?<=\s)>=(?=\s)", ">"),
    (r"(?<=\s)=(?=\s)", "<>"), (r"\bAND\b", "OR"), (r"\bOR\b", "AND"), (r"\bIS NULL\b", "IS NOT NULL"),
    (r"\bIS NOT NULL\b", "IS NULL"), (r"\bNOT EXISTS\b", "EXISTS"), (r" DESC\b", ""), (r" DISTINCT\b", ""),
    (r"\bmin\(", "max("), (r"\bmax\(", "min("), (r"(?<=\s)\+(?=\s)", "-"), (r"(?<=\s)-(?=\s)", "+"),
    (r"\bUNION ALL\b", "UNION"), (r"\bFOR (NO KEY )?UPDATE( SKIP LOCKED)?(?=\s*[;)])", ""), (r" SKIP LOCKED\b", ""),
    (r"(?m)^\s*PERFORM [^;]*;", ""), (r"\bTRUE\b", "FALSE"), (r"\bFALSE\b", "TRUE"), (r"\b[1-9][0-9]*\b", "0"),
]]  # fmt: skip


def _in_sql(source: str) -> Iterator[Change]:
    readable = re.sub(r"--.*", lambda comment: " " * len(comment[0]), source)
    for pattern, after in _SQL:
        yield from ((found.start(), found[0], after) for found in pattern.finditer(readable))


class _Run:
    """Copies of the tree; each tries one mutant at a time."""

    def __init__(self, directory: Path, jobs: int, deadline: float) -> None:
        self._deadline = deadline
        self._trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            tree = directory / str(number)
            shutil.copytree(REPOSITORY, tree, ignore=shutil.ignore_patterns(".*", "*.db*", "__pycache__"))
            self._trees.put(tree)

    def seconds(self, tests: Sequence[str]) -> float:
        """Return how long the tests take without a mistake. Exits when they fail."""
        tree, began = self._trees.get(), time.monotonic()
        timeout = self._deadline - began
        if not self._passes(tree, tests, timeout):
            sys.exit(f"without any mistake these fail: {' '.join(tests)}\n{(tree / 'output').read_text()[-2_000:]}")
        self._trees.put(tree)
        return time.monotonic() - began

    def outcome(self, mutant: Mutant, usual: float) -> tuple[str, str]:
        """Return whether it was noticed, survived or was not tried for want of time; and which test noticed it."""
        tree = self._trees.get()
        file = tree / mutant.path
        source = file.read_text()
        try:
            left = self._deadline - time.monotonic()
            if left <= 0:
                return "not tried", ""
            file.write_text(mutant.within(source))
            passes = self._passes(tree, TESTS[_pattern(mutant.path)], min(left, 3 * usual + 30))
            if time.monotonic() >= self._deadline:
                return "not tried", ""
            failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", (tree / "output").read_text(), re.MULTILINE)
            return ("survived", "") if passes else ("noticed", f" by {failed[0] if failed else 'no end'}")
        finally:
            file.write_text(source)
            self._trees.put(tree)

    def _passes(self, tree: Path, tests: Sequence[str], timeout: float) -> bool:
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not torture"]
        with (tree / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-B", "-m", "pytest", *options, *tests],
                cwd=tree, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                return process.wait(timeout) == 0
            except subprocess.TimeoutExpired:
                return False  # a mistake that makes it hang is noticed
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "paths", nargs="*", default=["storage/**/*.py", "storage/**/*.sql", "clients/**/*.py"], help="globs"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sample", type=int, default=200, help="mutants at most")
    parser.add_argument("--minutes", type=float, default=60.0, help="it ends by then, however many are left")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at once")
    options = parser.parse_args()
    files = sorted({file for glob in options.paths for file in REPOSITORY.glob(glob)})
    sources = {str(file.relative_to(REPOSITORY)): file.read_text() for file in files}
    every = [mutants_of(path, source) for path, source in sources.items()]
    chosen = evenly(every, random.Random(options.seed))[: options.sample]
    print(f"{len(chosen)} of {sum(map(len, every))} mutants, seed {options.seed}, {options.minutes:g} minutes at most")
    with TemporaryDirectory() as directory, ThreadPoolExecutor(options.jobs) as pool:
        run = _Run(Path(directory), options.jobs, time.monotonic() + 60 * options.minutes)
        usual = {pattern: run.seconds(TESTS[pattern]) for pattern in {_pattern(mutant.path) for mutant in chosen}}

        def tried(mutant: Mutant) -> str:
            outcome, test = run.outcome(mutant, usual[_pattern(mutant.path)])
            print(f"{outcome}{test}: {mutant.shown(sources[mutant.path])}", flush=True)
            return f"{Path(mutant.path).parent}: {outcome}"

        for outcome, mutants in sorted(Counter(pool.map(tried, chosen)).items()):
            print(outcome, mutants)


def _pattern(path: str) -> str:
    return next(pattern for pattern in TESTS if re.fullmatch(pattern, path))


if __name__ == "__main__":
    main()
