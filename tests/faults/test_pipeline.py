"""Test that a pipeline of three stages delivers each input's result exactly once despite kills.

A stage's whole loop is one request: `POST /transactions` acks its inputs, sends its outputs on and leases the next
inputs, in one commit. A stage repeats it with its Idempotency-Key until it is answered.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.checker import Outcome, read_histories
from tests.support.figures import AddRow
from tests.support.live import REPOSITORY, LiveServer
from tests.support.load import Connection, Load

LONG = [pytest.mark.slow, pytest.mark.torture]
QUEUES = ["input", "cut", "sewn", "output"]
LEASE = 2.0  # seconds; then a killed stage's inputs are redelivered


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=LONG)])
def test_each_inputs_result_is_delivered_exactly_once_while_stages_and_server_are_killed__issue_3(
    kills: int, tmp_path: Path, add_row: AddRow
) -> None:
    with LiveServer() as server, _stages(server) as stages, Load(server.port, tmp_path, QUEUES[0]) as load:
        load.write(batch=5, keyed=True).write()
        results = Load(server.port, tmp_path, QUEUES[-1])
        with results.read(before=QUEUES[:-1]):
            for _ in range(kills):
                _await_more_results(tmp_path)
                time.sleep(random.uniform(0.0, 0.3))
                number = random.randrange(len(stages))
                stages[number].kill()
                stages[number].wait()
                server.restart()
                stages[number] = _start(server, number)
            load.finish_writing()
            verdict = results.finish(written_as=lambda text: text.removesuffix(">0>1>2"))
    add_row(fault="kill -9 of a pipeline's stage and the server", times=kills, **verdict.figures)
    assert verdict.faultless, verdict
    assert verdict.acknowledged > kills


def _await_more_results(histories: Path) -> None:
    def results() -> int:
        return sum(len(operation.got) for operation in read_histories(histories) if operation.kind == "read")

    before, deadline = results(), time.monotonic() + 20
    while results() == before:
        assert time.monotonic() < deadline, "no result came for 20 s"
        time.sleep(0.05)


@contextmanager
def _stages(server: LiveServer) -> Iterator[list[subprocess.Popen[bytes]]]:
    stages = [_start(server, number) for number in range(3)]
    try:
        yield stages
    finally:
        for stage in stages:
            stage.kill()
            stage.wait()


def _start(server: LiveServer, number: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.test_pipeline", str(server.port), str(number)], cwd=REPOSITORY
    )


def _work(port: int, number: int) -> None:
    """Run stage `number` until it is killed. A result lists the stages it passed."""
    source, target = QUEUES[number : number + 2]
    connection = Connection(port)
    held: list[dict[str, Any]] = []
    while True:
        step = {
            "ack": [message["receipt"] for message in held],
            "send": [{"queue": target, "text": f"{message['text']}>{number}"} for message in held],
            "receive": {"queue": source, "limit": 10, "lease": LEASE, "wait": 0.5},
        }
        key, reply = uuid.uuid4().hex, None
        while reply is None or reply.status not in (200, 409):
            if connection.open():
                reply = connection.ask("POST", "/transactions", step, key)
        # 409: a lease ended and another worker may have the message, so nothing was done.
        held = reply.document["messages"] if reply.outcome is Outcome.ACKNOWLEDGED else []


if __name__ == "__main__":
    _work(int(sys.argv[1]), int(sys.argv[2]))
