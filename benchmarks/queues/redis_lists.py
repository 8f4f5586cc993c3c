"""Redis lists, the reliable-queue pattern: a taken message moves to the reader's own list until it is acked.

Single messages use LMOVE and LREM. Batches use pipelines, and a script that moves a batch in one command.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import redis

from benchmarks.queues import redis_server
from benchmarks.queues.peer import BATCH, TIMEOUT, Peer

QUEUE = "bench"
MOVE = """
local texts = redis.call('LRANGE', KEYS[1], 0, ARGV[1] - 1)
if #texts > 0 then
    redis.call('LTRIM', KEYS[1], #texts, -1)
    redis.call('RPUSH', KEYS[2], unpack(texts))
end
return texts
"""


class _Client:
    def __init__(self, address: str) -> None:
        self._redis = redis.Redis(port=int(address), decode_responses=True, socket_timeout=TIMEOUT)
        self._mine = f"{QUEUE}:{os.getpid()}"
        self._taken: str | None = None
        self._move = self._redis.script_load(MOVE)

    def send(self, text: str) -> None:
        self._redis.rpush(QUEUE, text)

    def take(self) -> str:
        # One round trip acks the last message and takes the next one.
        with self._redis.pipeline(transaction=False) as pipeline:
            if self._taken is not None:
                pipeline.lrem(self._mine, 1, self._taken)
            pipeline.blmove(QUEUE, self._mine, TIMEOUT, "LEFT", "RIGHT")
            text = str(pipeline.execute()[-1])
        self._taken = text
        return text

    def send_all(self, batches: Iterable[list[str]]) -> None:
        for batch in batches:
            self._redis.rpush(QUEUE, *batch)

    def take_all(self, count: int) -> Iterator[list[str]]:
        while count:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.delete(self._mine)
                pipeline.evalsha(self._move, 2, QUEUE, self._mine, min(BATCH, count))
                texts: list[str] = pipeline.execute()[-1]
            if not texts:
                texts = [str(self._redis.blmove(QUEUE, self._mine, TIMEOUT, "LEFT", "RIGHT"))]
            count -= len(texts)
            yield texts
        self._redis.delete(self._mine)

    def close(self) -> None:
        if self._taken is not None:
            self._redis.lrem(self._mine, 1, self._taken)
        self._redis.close()


PEER = Peer(name="Redis lists", version=redis_server.version, serve=redis_server.serve, connect=_Client)
