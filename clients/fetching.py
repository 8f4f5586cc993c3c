"""Lease and ack messages on a separate thread, so that a signal never interrupts a request that leases some.

A signal whose handler raises can leave a lock of `threading` locked, and a Future has one. So the two threads share
only SimpleQueues, whose calls a signal cannot interrupt half-way.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from .client import QueueClient
from .column_batches import ColumnBatch

RELEASES_WITHIN = 2.0  # seconds of an interrupted command

Runs = list[ColumnBatch]
Results = queue.SimpleQueue[Runs | BaseException]


class Fetcher:
    """Ack finished messages and fetch the next ones, one request after the other."""

    def __init__(self, client: QueueClient, lease: float, results: Results) -> None:
        """What a request fetched, or its error, is put into `results`."""
        self._client = client
        self._lease = lease
        self._held: dict[str, ColumnBatch] = {}  # by receipt: leased and not yet acked
        self._results = results
        self._requests: queue.SimpleQueue[tuple[Callable[[], Runs], Results] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="fetcher", daemon=True).start()

    def ask(self, receipts: list[str], limit: int, wait: float) -> None:
        """Ack the receipts, then fetch the next messages as soon as there are any, or none after `wait` seconds."""
        self._requests.put((lambda: self._ack_and_fetch(receipts, limit, wait), self._results))

    def release_all(self, finish: Callable[[Runs], Iterable[str]]) -> None:
        """Settle all leased messages of an interrupted command, within about 2 seconds. Never raises.

        `finish` gets the messages and returns the receipts to ack; the others are released as if undelivered.
        """
        settled: Results = queue.SimpleQueue()
        self._requests.put((lambda: self._settle(finish), settled))
        with suppress(queue.Empty):  # the messages are redelivered when their leases end
            settled.get(timeout=RELEASES_WITHIN)

    def close(self) -> None:
        """End the thread after its current request."""
        self._requests.put(None)

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            work, results = request
            try:
                results.put(work())
            except BaseException as error:
                results.put(error)

    def _ack_and_fetch(self, receipts: list[str], limit: int, wait: float) -> Runs:
        until = time.monotonic() + wait
        runs = Runs()
        if receipts:
            # Stale or missing receipts are not an error: a reader slower than its lease gets the messages again.
            _, runs = self._client.ack_and_receive_runs(receipts, limit=limit, wait=wait, lease=self._lease)
        left = max(0.0, until - time.monotonic())
        if not runs and (left or not receipts):
            runs = self._client.receive_runs(limit=limit, wait=left, lease=self._lease)
        for receipt in receipts:
            del self._held[receipt]
        self._held.update((run.receipt, run) for run in runs)
        return runs

    def _settle(self, finish: Callable[[Runs], Iterable[str]]) -> Runs:
        done = self._held.keys() & finish(list(self._held.values()))
        left = [run for receipt, run in self._held.items() if receipt not in done]
        self._client._run(self._client._leased.ack_last(done, self._client.queue))
        receipts = (receipt for run in left for receipt in run.receipts)
        self._client._run(self._client._leased.release_all(receipts, self._client.queue, counted=False))
        return []
