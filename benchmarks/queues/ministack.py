"""Amazon's SQS as ministack imitates it, in memory: nothing is on a disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.queues import sqs
from benchmarks.queues.peer import Server, program, versions
from benchmarks.queues.process import free_port, running


@contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    port = free_port()
    environment = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "LOG_LEVEL": "ERROR"}
    with running([_program()], folder, port, environment=environment) as pid:
        yield Server(f"http://127.0.0.1:{port}", pid)


def _program() -> str:
    return program("ministack", "", str(Path(sys.executable).parent))


PEER = replace(
    sqs.PEER,
    name="ministack's SQS",
    version=lambda: versions("ministack", "boto3") if _program() else "",
    serve=_serve,
)
