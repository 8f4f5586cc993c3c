"""Amazon's SQS as moto imitates it, in memory: nothing is on a disk; boto3, in batches of 10, the maximum of SQS."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3

from benchmarks.queues.peer import Peer, Server, batches, in_batches, program, versions
from benchmarks.queues.process import free_port, running

LARGEST = 10  # messages in a request
WAIT = 5  # seconds of one poll


@contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    port = free_port()
    command = [_program(), "-H", "127.0.0.1", "-p", str(port)]
    with running(command, folder, port) as pid:
        yield Server(f"http://127.0.0.1:{port}", pid)


def _program() -> str:
    return program("moto_server", "python3-moto", str(Path(sys.executable).parent))


class _Client:
    def __init__(self, address: str) -> None:
        self._sqs = boto3.client(
            "sqs",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id="none",
            aws_secret_access_key="none",
        )
        self._queue = self._sqs.create_queue(QueueName="bench")["QueueUrl"]
        self._taken: list[str] = []

    def send(self, text: str) -> None:
        self._sqs.send_message(QueueUrl=self._queue, MessageBody=text)

    def take(self) -> str:
        return self._next(1)[0]

    def send_all(self, batches_: Iterable[list[str]]) -> None:
        for batch in batches_:
            for texts in batches(batch, LARGEST):
                entries = [{"Id": str(number), "MessageBody": text} for number, text in enumerate(texts)]
                self._sqs.send_message_batch(QueueUrl=self._queue, Entries=entries)

    def take_all(self, count: int) -> Iterator[list[str]]:
        yield from in_batches(self._next, count, LARGEST)
        self._ack()

    def close(self) -> None:
        self._ack()
        self._sqs.close()

    def _next(self, most: int) -> list[str]:
        self._ack()
        while True:
            found = self._sqs.receive_message(QueueUrl=self._queue, MaxNumberOfMessages=most, WaitTimeSeconds=WAIT)
            if messages := found.get("Messages"):
                self._taken = [message["ReceiptHandle"] for message in messages]
                return [message["Body"] for message in messages]

    def _ack(self) -> None:
        if self._taken:
            entries = [{"Id": str(number), "ReceiptHandle": taken} for number, taken in enumerate(self._taken)]
            self._sqs.delete_message_batch(QueueUrl=self._queue, Entries=entries)
            self._taken = []


PEER = Peer(
    name="moto's SQS",
    version=lambda: versions("moto", "boto3") if _program() else "",
    serve=_serve,
    connect=_Client,
    note="in memory, on no disk; a stand-in for tests",
    durable=False,
    ordered=False,
)
