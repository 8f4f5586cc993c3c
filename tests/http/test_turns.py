"""No request delays the others of its worker: a thread does what takes longer than a few milliseconds.

The test measures the processor time between two moments at which the loop could continue with another request. So a
busy machine does not count.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.sqlite.disk.group_commit import SLOW
from tests.limits.bounds import Scene, new, scene_on
from tests.support.figures import AddRow
from tests.support.live import await_true
from tests.support.load import Connection

MOST = 0.005  # seconds

MEASURED = """
import gc, time
from pathlib import Path
from greenlet import greenlet
from web.server import loop
from storage.sqlite.disk import group_commit
from storage.sqlite.disk.group_commit import GroupCommit

group_commit.SLOW = {slow}
longest = Path({longest!r})
most = [0.0]

def timed(call):
    def run(*arguments, **named):
        began = time.thread_time()
        try:
            return call(*arguments, **named)
        finally:
            taken = time.thread_time() - began
            if not longest.exists() or taken > most[0]:
                most[0] = taken
                longest.write_text(str(taken))
    return run

def turn(*arguments):
    gc.collect()  # as Python may do at any time
    return commit(*arguments)

commit = GroupCommit._turn
GroupCommit._turn = timed(turn)
loop.Task.switch = timed(greenlet.switch)
exec(Path("gunicorn.conf.py").read_text())
"""


@pytest.fixture(params=[SLOW, -1.0], ids=["quick disk", "slow disk"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Yield a service; as on a slow disk, a thread makes each of its commits."""
    config = tmp_path / "measured.py"
    config.write_text(MEASURED.format(longest=str(tmp_path / "longest"), slow=request.param))
    monkeypatch.setenv("GUNICORN_CMD_ARGS", f"--config {config}")
    with scene_on(tmp_path, 30_000) as scene:
        yield scene


def worst_requests(scene: Scene) -> Iterator[tuple[str, str, Any]]:
    """Yield the most expensive requests of each route, or action of SQS, that the loop serves."""
    many = {f"a{number}": number for number in range(60)}
    yield "POST", "/queues/w/messages", {"text": "é\\\n" * 20_000}
    yield "POST", "/queues/w/messages", {"text": "x", "attributes": many}
    yield "POST", "/queues/w/messages", {"text": "x", "attributes": {"z" * 200 + name: "y" * 800 for name in many}}
    yield "POST", "/queues/w/messages", [{"text": "x"}] * 4_000
    yield "POST", "/queues/w/messages", {"text": "x" * 7_000_000}
    yield "GET", "/queues/w/messages?limit=16&lease=60", None
    yield "GET", "/queues/w/messages?limit=1000&lease=60", None
    yield "POST", "/queues/large/messages", {"text": "é" * 1_300_000}
    yield "GET", "/queues/large/messages", None
    scene.fill("acked", 2_000)
    receipts = [message.receipt for message in scene.lease("acked", 2_000)]
    yield "POST", "/messages/ack", {"receipts": receipts[:200]}
    yield "POST", "/messages/ack", {"receipts": receipts[200:1_200]}
    yield "POST", "/transactions", {"ack": receipts[1_200:1_400], "receive": {"queue": "none", "wait": 0.1}}
    yield "POST", "/transactions", {"send": [{"queue": f"q{number}", "text": "x"} for number in range(60)]}
    yield "POST", "/transactions", {"send": [{"queue": "t", "text": "x"}] * 2_000}
    scene.fill("due", delay=0.5)
    scene.fill("expired", ttl=0.5, key=lambda number: f"k{number % 1_000}")
    time.sleep(0.6)
    yield "GET", "/queues/due/messages", None
    yield "GET", "/queues/expired/messages", None
    scene.store.configure("full", {"max_messages": 20_000})
    scene.fill("full", 20_000, ttl=0.5)
    time.sleep(0.6)
    yield "POST", "/queues/full/messages", {"text": "x"}
    url = {"QueueUrl": f"{scene.server.url}/000000000000/sqs"}
    attributes = {f"a{number}": {"DataType": "String", "StringValue": "z" * 1_000} for number in range(10)}
    yield "CreateQueue", "/", {"QueueName": "sqs"}
    yield "SendMessage", "/", url | {"MessageBody": "é" * 7_000, "MessageAttributes": attributes}
    entries = [{"Id": f"{number}", "MessageBody": "é" * 400, "MessageAttributes": attributes} for number in range(4)]
    yield "SendMessageBatch", "/", url | {"Entries": entries}
    for _ in range(10):
        scene.store.send("sqs", [new("é" * 500_000)])
    yield "ReceiveMessage", "/", url | {"MaxNumberOfMessages": 10}
    yield "GET", "/queues", None
    yield "GET", "/queues/due/peek?limit=1000", None
    yield "POST", "/queues/due/purge", None


@pytest.mark.slow
def test_no_request_delays_the_loop_for_long(scene: Scene, tmp_path: Path, add_row: AddRow) -> None:
    measured = tmp_path / "longest"
    times: dict[str, float] = {}

    connection = Connection(scene.server.port)
    assert connection.open()
    for _ in range(200):
        assert connection.ask("POST", "/queues/warm/messages", {"text": "x"}).status == 200
    for method, path, document in worst_requests(scene):
        measured.unlink()
        if path == "/":
            reply = connection.ask("POST", path, document, target=f"AmazonSQS.{method}")
        else:
            reply = connection.ask(method, path, document)
        assert reply.status in (200, 204, 400), (path, reply)
        await_true(measured.exists)
        times[f"{method} {path} of {len(json.dumps(document)):,} bytes"] = float(measured.read_text() or 0.0)
    connection.close()
    for request, taken in times.items():
        add_row(request=request, delayed_the_loop_by=f"{taken * 1000:.1f} ms")
    assert max(times.values()) < MOST
