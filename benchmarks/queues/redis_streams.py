"""Redis streams with a consumer group: XADD, XREADGROUP, and XACK with XDEL, pipelined in batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

import redis

from benchmarks.queues import redis_server
from benchmarks.queues.peer import TIMEOUT, Peer, in_batches

QUEUE, GROUP = "bench", "readers"


class _Client:
    def __init__(self, address: str) -> None:
        self._redis = redis.Redis(port=int(address), decode_responses=True, socket_timeout=TIMEOUT)
        self._me = str(os.getpid())
        self._taken: list[str] = []
        with suppress(redis.ResponseError):  # it exists already
            self._redis.xgroup_create(QUEUE, GROUP, "0", mkstream=True)

    def send(self, text: str) -> None:
        self._redis.xadd(QUEUE, {"text": text})

    def take(self) -> str:
        return self._next(1)[0]

    def send_all(self, batches: Iterable[list[str]]) -> None:
        for batch in batches:
            with self._redis.pipeline(transaction=False) as pipeline:
                for text in batch:
                    pipeline.xadd(QUEUE, {"text": text})
                pipeline.execute()

    def take_all(self, count: int) -> Iterator[list[str]]:
        yield from in_batches(self._next, count)
        self._ack()

    def close(self) -> None:
        self._ack()
        self._redis.close()

    def _next(self, most: int) -> list[str]:
        with self._redis.pipeline(transaction=False) as pipeline:
            if self._taken:
                pipeline.xack(QUEUE, GROUP, *self._taken)
                pipeline.xdel(QUEUE, *self._taken)
            pipeline.xreadgroup(GROUP, self._me, {QUEUE: ">"}, count=most, block=int(TIMEOUT * 1000))
            [[_, entries]] = pipeline.execute()[-1]
        self._taken = [number for number, _ in entries]
        return [fields["text"] for _, fields in entries]

    def _ack(self) -> None:
        if self._taken:
            self._redis.xack(QUEUE, GROUP, *self._taken)
            self._redis.xdel(QUEUE, *self._taken)
            self._taken = []


PEER = Peer(name="Redis streams", version=redis_server.version, serve=redis_server.serve, connect=_Client)
