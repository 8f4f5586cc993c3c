"""Test the state diagram in docs/http.md: all its arrows occur, and no others.

Each story takes a new queue `q` through some of the arrows. After every step the test compares the states of all
messages; a change is an arrow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.model import NewMessage, Receive, State
from storage.store import Engine
from tests.support.engines import ENGINES, FakeClock

OUTSIDE = "[*]"
DIAGRAM = (Path(__file__).resolve().parents[2] / "docs/http.md").read_text()
ARROWS = set(re.findall(r"^    (\S+) --> (\S+): ", DIAGRAM, re.MULTILINE))


class Watched:
    """A store with one queue, whose steps are watched for arrows."""

    def __init__(self, store: Engine, clock: FakeClock) -> None:
        self.store = store
        self.arrows: set[tuple[str, str]] = set()
        self._clock = clock
        self._states: dict[str, str] = {}

    def send(self, text: str, **fields: Any) -> None:
        self.store.send("q", [NewMessage.from_document({"text": text, **fields})])
        self._look()

    def take(self, limit: int = 1, lease: float | None = 30.0, queue: str = "q") -> list[str]:
        """Lease messages and return their receipts."""
        messages = self.store.receive(Receive((queue,), limit, lease))
        self._look()
        return [message.receipt or "" for message in messages]

    def after(self, seconds: float) -> None:
        self._clock.advance(seconds)
        self._look()

    def do(self, verb: Callable[..., object], *arguments: Any) -> None:
        verb(*arguments)
        self._look()

    def _look(self) -> None:
        states = {message.text: str(message.state) for message in self.store.peek("q")}
        states |= {message.text: str(message.state) for message in self.store.peek("q", state=State.DEAD)}
        for text in self._states.keys() | states.keys():
            before, after = self._states.get(text, OUTSIDE), states.get(text, OUTSIDE)
            if before != after:
                self.arrows.add((before, after))
        self._states = states


def lease_and_ack(it: Watched) -> None:
    it.send("a")
    it.do(it.store.settle, *it.take())


def release_and_lapse(it: Watched) -> None:
    it.send("a")
    it.do(it.store.release, *it.take())
    it.take()
    it.after(30)


def late_holders(it: Watched) -> None:
    for text in "abc":
        it.send(text)
    first, second, third = it.take(3)
    it.after(30)
    it.do(it.store.extend, first, 10)
    it.do(it.store.settle, second)
    it.do(it.store.reject, third)


def delays(it: Watched) -> None:
    it.send("a", delay=5)
    it.after(5)
    (receipt,) = it.take()
    it.do(it.store.release, receipt, 5)
    it.do(it.store.settle, receipt)
    it.send("b")
    (receipt,) = it.take()
    it.do(it.store.release, receipt, 5)
    it.do(it.store.reject, receipt)


def keys(it: Watched) -> None:
    for text in "abc":
        it.send(text, key="k")
    it.send("d", key="k", delay=60)
    first, second = it.take(2)
    it.do(it.store.release, first)  # blocked again while the second is leased
    it.do(it.store.settle, second)
    it.take(2, lease=None)
    it.after(60)


def blocked_ones_leave(it: Watched) -> None:
    for text in "abcd":
        it.send(text, key="k")
    first, second, third, _ = it.take(4)
    it.do(it.store.release, second)
    it.do(it.store.settle, second)
    it.do(it.store.release, third)
    it.do(it.store.reject, third)
    it.do(it.store.release, first)
    it.do(it.store.purge, "q")


def dead_and_back(it: Watched) -> None:
    it.do(it.store.configure, "q", {"max_receives": 1})
    it.send("a", key="k")
    it.do(it.store.release, *it.take())
    it.do(it.store.redrive, "q")
    it.take()
    it.after(30)
    it.send("b", key="k")
    it.do(it.store.redrive, "q")  # behind b
    it.do(it.store.configure, "q", {"max_receives": None})
    it.do(it.store.reject, *it.take())
    it.take(queue="q.dead", lease=None)


def expiry(it: Watched) -> None:
    for dead_lettered in (False, True):
        it.do(it.store.configure, "q", {"dead_letter_expired": dead_lettered})
        it.send("a", key="k", ttl=5)
        it.send("b", key="k", ttl=5)
        it.send("c", ttl=5, delay=60)
        it.after(5)


def changed_by_id(it: Watched) -> None:
    for text in "abc":
        it.send(text, key="k")
    first, second, third = (message.id for message in it.store.peek("q"))
    it.do(it.store.reschedule, "q", first, 60)
    it.do(it.store.reschedule, "q", second, 60)
    it.do(it.store.reschedule, "q", first, 0)
    it.do(it.store.dead_letter, "q", first)
    it.do(it.store.delete_message, "q", third)
    it.do(it.store.delete_message, "q", second)


STORIES = [
    lease_and_ack,
    release_and_lapse,
    late_holders,
    delays,
    keys,
    blocked_ones_leave,
    dead_and_back,
    expiry,
    changed_by_id,
]


@pytest.fixture(params=ENGINES)
def watched(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[Callable[[Watched], None]], set[tuple[str, str]]]]:
    """Run a story on a new store; return the arrows it took."""
    stores: list[Engine] = []

    def run(story: Callable[[Watched], None]) -> set[tuple[str, str]]:
        clock = FakeClock()
        (directory := tmp_path / story.__name__).mkdir()
        stores.append(ENGINES[request.param](directory, clock))
        it = Watched(stores[-1], clock)
        story(it)
        return it.arrows

    yield run
    for store in stores:
        store.close()


def test_the_stories_cover_every_arrow_of_the_diagram_and_no_other(
    watched: Callable[[Callable[[Watched], None]], set[tuple[str, str]]],
) -> None:
    gone = set().union(*map(watched, STORIES))
    assert gone == ARROWS
