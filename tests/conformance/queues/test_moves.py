"""Test moves: tasks that empty a dead-letter queue, done by upkeep."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from storage.errors import MoveNotFound, MoveRunning, QueueNotFound
from storage.model import MOVES_KEPT, Move
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, lease_one, new, peek, send, stats, until


def die(store: Store, names: Iterable[str], queue: str = "q") -> None:
    for name in names:
        send(store, name, queue=queue)
        store.reject(lease_one(store, queue=queue).receipt)


def finished(store: Store, source: str) -> Move:
    assert until(lambda: store.moves(source, 1)[0].status != "running")
    return store.moves(source, 1)[0]


def test_a_move_returns_each_dead_letter_to_its_origin(store: Store, clock: FakeClock) -> None:
    configure(store, "a", dead_letter_queue="graves")
    configure(store, "b", dead_letter_queue="graves")
    die(store, ["deeper"], "graves")  # from this queue, but not in it
    die(store, ["1", "2"], "a")
    die(store, ["3"], "b")
    started = store.start_move("graves")
    assert started == Move(started.task, "graves", None, None, clock.now(), "running", 0, 3, None)
    assert finished(store, "graves") == started._replace(status="completed", moved=3)
    assert (peek(store, queue="a"), peek(store, queue="b"), peek(store, queue="graves")) == (["1", "2"], ["3"], [])
    assert peek(store, queue="graves.dead") == ["deeper"]


def test_a_move_to_a_queue_takes_every_message_and_its_deaths_are_forgotten(store: Store) -> None:
    configure(store, "to")
    die(store, ["1", "2"])
    send(store, *(f"never died {number}" for number in range(30)), queue="q.dead")
    held = lease_one(store, queue="q.dead")
    store.start_move("q.dead", "to")
    assert finished(store, "q.dead").moved == 31
    assert peek(store, queue="to") == ["2", *(f"never died {number}" for number in range(30))]
    assert all(message.deaths is None for message in store.peek("to"))
    assert peek(store, queue="q.dead") == [held.text]
    assert stats(store).dead == 1


def test_a_move_without_a_target_fails_at_messages_that_never_died(store: Store) -> None:
    die(store, ["1"])
    send(store, "never died", queue="q.dead")
    store.start_move("q.dead")
    done = finished(store, "q.dead")
    assert (done.status, done.failure, done.moved) == ("failed", "no_origin", 1)
    assert (peek(store), peek(store, queue="q.dead")) == (["1"], ["never died"])


def test_a_move_whose_target_was_deleted_fails(store: Store, clock: FakeClock) -> None:
    configure(store, "to")
    die(store, "123")
    store.start_move("q.dead", "to", rate=1)
    assert until(lambda: store.moves("q.dead")[0].moved == 1)
    store.delete_queue("to")
    clock.advance(5)
    done = finished(store, "q.dead")
    assert (done.status, done.failure, done.moved) == ("failed", "queue_not_found", 1)
    assert "to" not in store.names()


@pytest.mark.slow
def test_a_move_keeps_to_its_rate_and_is_cancelled(open_again: Callable[[], Store], clock: FakeClock) -> None:
    store, _ = open_again(), open_again()
    die(store, map(str, range(20)))
    task = store.start_move("q.dead", rate=3).task
    for seconds in range(3):
        assert until(lambda now=seconds: stats(store).ready >= 3 * (now + 1))  # type: ignore[misc]
        assert stats(store).ready == store.moves("q.dead")[0].moved == 3 * (seconds + 1)
        clock.advance(1)
    moved = store.cancel_move("q.dead", task)
    assert (moved.status, moved.rate, moved.to_move) == ("cancelled", 3, 20)
    clock.advance(100)
    assert not until(lambda: stats(store).ready > moved.moved, 2.5)
    with pytest.raises(MoveNotFound):
        store.cancel_move("q.dead", task)


def test_a_queue_has_one_running_move_and_the_last_ones_are_listed(store: Store) -> None:
    send(store, "a", queue="q.dead")
    configure(store, "to")
    tasks = []
    for _ in range(MOVES_KEPT + 2):
        tasks.append(store.start_move("q.dead", "to", rate=1).task)
        with pytest.raises(MoveRunning):
            store.start_move("q.dead")
        store.cancel_move("q.dead", tasks[-1])
    assert [move.task for move in store.moves("q.dead")] == tasks[: -MOVES_KEPT - 1 : -1]
    assert [move.task for move in store.moves("q.dead", 2)] == tasks[:-3:-1]


def test_moves_need_their_queues(store: Store) -> None:
    for call in (
        lambda: store.start_move("q"),
        lambda: store.moves("q"),
        lambda: store.cancel_move("q", "task"),
    ):
        with pytest.raises(QueueNotFound):
            call()
    send(store, "a")
    with pytest.raises(QueueNotFound):
        store.start_move("q", "to")
    with pytest.raises(MoveNotFound):
        store.cancel_move("q", "task")
    assert store.moves("q") == []


def test_the_moves_of_a_deleted_queue_are_deleted(store: Store) -> None:
    send(store, "a")
    store.cancel_move("q", store.start_move("q").task)
    store.delete_queue("q")
    configure(store)
    assert store.moves("q") == []


def test_messages_of_a_key_are_moved_in_order(store: Store) -> None:
    configure(store, "to")
    store.send("q.dead", [new(str(number), key="k") for number in range(5)])
    store.start_move("q.dead", "to")
    assert finished(store, "q.dead").moved == 5
    assert peek(store, queue="to") == list("01234")
    assert (stats(store, "to").ready, stats(store, "to").blocked) == (1, 4)
