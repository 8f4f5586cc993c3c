"""NATS JetStream: a work-queue stream in files, an fsync for every write; asynchronous publishes, batched fetches."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nats.aio.client import Client as Connection
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

from benchmarks.queues.peer import BATCH, TIMEOUT, Peer, Server, in_batches, program, versions
from benchmarks.queues.process import free_port, output, running

SUBJECT, STREAM, READERS = "bench", "BENCH", "readers"
CONFIG = """
listen: 127.0.0.1:{port}
jetstream {{ store_dir: "{folder}/data", sync_interval: always }}
"""
LEASE = 60.0  # seconds


def _version() -> str:
    return f"NATS {output(_program(), '--version').split()[-1]}, {versions('nats-py')}"


def _program() -> str:
    return program("nats-server", "nats-server", str(Path(sys.executable).parent))


@contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    port = free_port()
    config = folder / "nats.conf"
    config.write_text(CONFIG.format(port=port, folder=folder))
    with running([_program(), "-c", str(config)], folder, port) as pid:
        yield Server(f"nats://127.0.0.1:{port}", pid)


class _Client:
    def __init__(self, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._connection = Connection()
        self._taken: list[Any] = []
        self._run(self._connect(address))

    def send(self, text: str) -> None:
        self._run(self._stream.publish(SUBJECT, text.encode(), timeout=TIMEOUT))

    def take(self) -> str:
        return str(self._run(self._next(1))[0])

    def send_all(self, batches: Iterable[list[str]]) -> None:
        self._run(self._send_all(batches))

    def take_all(self, count: int) -> Iterator[list[str]]:
        yield from in_batches(lambda most: self._run(self._next(most)), count)
        self._run(self._ack())

    def close(self) -> None:
        self._run(self._ack())
        self._run(self._connection.close())
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)

    async def _connect(self, address: str) -> None:
        await self._connection.connect(address)
        self._stream = self._connection.jetstream(publish_async_max_pending=BATCH)
        await self._stream.add_stream(
            StreamConfig(
                name=STREAM, subjects=[SUBJECT], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.FILE
            )
        )
        reader = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=LEASE, max_ack_pending=-1)
        self._reader = await self._stream.pull_subscribe(SUBJECT, READERS, STREAM, reader)

    async def _send_all(self, batches: Iterable[list[str]]) -> None:
        confirms = []
        for batch in batches:
            for text in batch:
                confirms.append(await self._stream.publish_async(SUBJECT, text.encode()))
        await asyncio.gather(*confirms)

    async def _next(self, most: int) -> list[str]:
        await self._ack()
        self._taken = await self._reader.fetch(most, timeout=TIMEOUT)
        return [message.data.decode() for message in self._taken]

    async def _ack(self) -> None:
        for message in self._taken:
            await message.ack()
        if self._taken:
            await self._connection.flush()
        self._taken = []


PEER = Peer(name="NATS JetStream", version=_version, serve=_serve, connect=_Client)
