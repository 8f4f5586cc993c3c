"""Lease and ack messages on a separate thread, so that a signal never interrupts a request that leases some."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress

from .client import QueueClient
from .column_batches import ColumnBatch
from .messages import AckResult
from .reading import LONGEST_WAIT

QUICK = 2.0  # seconds that an interrupted command may take to release its messages
IN_A_POLL = 0.5  # seconds, the same during a longer poll, which leases nothing once its connection is closed

Runs = list[ColumnBatch]
Fetched = tuple[AckResult, Runs]  # the result for the receipts, and the next messages


class Fetcher:
    """Ack finished messages and fetch the next ones, one request after the other."""

    def __init__(self, client: QueueClient, lease: float) -> None:
        self._client = client
        self._lease = lease
        self._held: dict[str, ColumnBatch] = {}  # by receipt: leased and not yet acked
        self._wait = 0.0  # seconds of the current poll
        self._requests: queue.SimpleQueue[tuple[Callable[[], Fetched], Future[Fetched]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="fetcher", daemon=True).start()

    def ask(self, receipts: list[str], limit: int, wait: float) -> Future[Fetched]:
        """Ack the receipts, then return the next messages as soon as there are any, or none after `wait` seconds."""
        return self._submit(lambda: self._ack_and_fetch(receipts, limit, wait))

    def release_all(self, finish: Callable[[Runs], Iterable[str]]) -> None:
        """Settle all leased messages of an interrupted command, within about 2 seconds. Never raises.

        `finish` gets the messages and returns the receipts to ack; the others are released as if undelivered.
        """
        with suppress(Exception):  # the messages are redelivered when their leases end
            self._submit(lambda: self._settle(finish)).result(IN_A_POLL if self._wait > QUICK else QUICK)

    def close(self) -> None:
        """End the thread after its current request."""
        self._requests.put(None)

    def _submit(self, work: Callable[[], Fetched]) -> Future[Fetched]:
        result: Future[Fetched] = Future()
        self._requests.put((work, result))
        return result

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            work, result = request
            try:
                result.set_result(work())
            except BaseException as error:
                result.set_exception(error)

    def _ack_and_fetch(self, receipts: list[str], limit: int, wait: float) -> Fetched:
        self._wait, until = wait, time.monotonic() + wait
        acked, runs = AckResult(0, [], []), Runs()
        if receipts:
            # Stale or missing receipts are not an error: a reader slower than its lease gets the messages again.
            acked, runs = self._client.ack_and_receive_runs(
                receipts, limit=limit, wait=min(wait, LONGEST_WAIT), lease=self._lease
            )
        left = max(0.0, until - time.monotonic())
        if not runs and (left or not receipts):
            runs = self._client.receive_runs(limit=limit, wait=left, lease=self._lease)
        for receipt in receipts:
            del self._held[receipt]
        self._held.update((run.receipt, run) for run in runs)
        self._wait = 0.0
        return acked, runs

    def _settle(self, finish: Callable[[Runs], Iterable[str]]) -> Fetched:
        done = self._held.keys() & finish(list(self._held.values()))
        left = [run for receipt, run in self._held.items() if receipt not in done]
        result = self._client._run(self._client._leased.ack_last(done, self._client.queue))
        receipts = (receipt for run in left for receipt in run.receipts)
        self._client._run(self._client._leased.release_all(receipts, self._client.queue, counted=False))
        return result, []
