"""Test row 31 of docs/reliability.md: changed settings of a long queue delay no other client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.validation import MAX_BATCH
from tests.limits.bounds import (
    ANSWERED_IN,
    LOCKED_FOR,
    PATIENCE,
    Asking,
    Committing,
    Other,
    Request,
    Scene,
    answer,
    batched,
    encoded,
    fresh,
    ms,
    scene_on,
    seconds_of_a_batch,
)
from tests.support.figures import AddRow
from tests.support.load import Connection

LONG = [pytest.mark.slow, pytest.mark.torture]


@pytest.fixture(params=["sqlite", "postgres"])
def scene(request: pytest.FixtureRequest, size: int, tmp_path: Path) -> Iterator[Scene]:
    with scene_on(tmp_path if request.param == "sqlite" else request.getfixturevalue("postgres"), size) as scene:
        yield scene


@pytest.mark.parametrize("size", [30_000, pytest.param(3_000_000, marks=LONG)])
def test_a_retention_that_expires_a_long_queue_delays_no_other_client__row_31(scene: Scene, add_row: AddRow) -> None:
    scene.fill(queue := fresh(), priority=None)
    time.sleep(1.1)
    _assert_others_go_on(scene, queue, {"retention": 1}, add_row)


@pytest.mark.parametrize("size", [12_000, pytest.param(300_000, marks=LONG)])
def test_a_max_receives_that_all_released_messages_have_reached_delays_no_other_client__row_31(
    scene: Scene, add_row: AddRow
) -> None:
    scene.fill(queue := fresh())
    for some in batched(scene.lease(queue, scene.size), MAX_BATCH):
        scene.store.extend_many([str(message.receipt) for message in some], 0.001)
    assert scene.store.queue(queue).stats.received == scene.size
    _assert_others_go_on(scene, queue, {"max_receives": 1}, add_row)


def _assert_others_go_on(scene: Scene, queue: str, changes: dict[str, Any], add_row: AddRow) -> None:
    """Change the settings; other clients continue, and a message sent afterwards is delivered."""
    with Other(Committing(scene.store, queue)) as commits, Other(Asking(scene.server)) as asked:
        time.sleep(0.1)  # they are at work now
        began = time.monotonic()
        assert answer(scene.server, Request("PUT", f"/queues/{queue}", encoded(changes))) == 200
        changed = time.monotonic()
        busy = _await_delivery(scene, queue)
        delivered = time.monotonic()
    batch = seconds_of_a_batch(scene.store)
    add_row(
        changed=json.dumps(changes), engine=type(scene.store).__name__, messages=scene.size,
        answered_in=ms(changed - began), next_delivered_in=ms(delivered - changed), refused_as_busy=busy,
        others_waited_to_commit=ms(commits.longest), others_answered_in=ms(asked.longest), a_batch_takes=ms(batch),
    )  # fmt: skip
    assert changed - began < LOCKED_FOR * batch
    assert commits.longest < LOCKED_FOR * batch
    assert asked.longest < ANSWERED_IN * batch


def _await_delivery(scene: Scene, queue: str) -> int:
    """Send and read until a message sent after the change arrives; return how many reads were busy."""
    busy = 0
    connection = Connection(scene.server.port)
    assert connection.open()
    deadline = time.monotonic() + PATIENCE
    while True:
        assert time.monotonic() < deadline, "the next message is not delivered"
        assert connection.ask("POST", f"/queues/{queue}/messages", {"text": "after the change"}).status == 200
        reply = connection.ask("GET", f"/queues/{queue}/messages")
        assert reply.status in (200, 204, 503), reply
        busy += reply.status == 503
        if reply.status == 200 and reply.document["text"] in ("after the change", "beside"):
            connection.close()
            return busy
