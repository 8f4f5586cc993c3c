"""Messages leased and acked on a thread of their own, so that a signal never cuts off a request which leases some."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress

from .client import QueueClient
from .column_batches import ColumnBatch
from .consuming import LONGEST_WAIT
from .messages import AckResult

QUICK = 2.0  # seconds: how long one that is interrupted may take to give back what it holds
IN_A_POLL = 0.5  # seconds: … while it is in a longer poll, which takes nothing any more once its connection is closed

Runs = list[ColumnBatch]
Fetched = tuple[AckResult, Runs]  # what became of the receipts, and the next messages


class Fetcher:
    """Acks what was worked on and fetches what comes next, one request after the other."""

    def __init__(self, client: QueueClient, lease: float, recipient: str | None = None) -> None:
        self._client = client
        self._lease = lease
        self._recipient = recipient
        self._held: dict[str, ColumnBatch] = {}  # by receipt: leased, and not acked yet
        self._wait = 0.0  # seconds of the poll under way
        self._asked: queue.SimpleQueue[tuple[Callable[[], Fetched], Future[Fetched]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="fetcher", daemon=True).start()

    def ask(self, receipts: list[str], limit: int, wait: float) -> Future[Fetched]:
        """The next messages, when there are any or `wait` seconds have passed; the receipts are acked by then."""
        return self._soon(lambda: self._ack_and_fetch(receipts, limit, wait))

    def release_all(self, finish: Callable[[Runs], Iterable[str]]) -> None:
        """Hold nothing any more, as far as that is possible soon: for one that was interrupted.

        `finish` gets all that is held and returns the receipts to ack; the others are given back as if undelivered.
        """
        with suppress(Exception):  # then they come back when the leases end
            self._soon(lambda: self._give_back(finish)).result(IN_A_POLL if self._wait > QUICK else QUICK)

    def close(self) -> None:
        """End the thread, after what it is doing."""
        self._asked.put(None)

    def _soon(self, work: Callable[[], Fetched]) -> Future[Fetched]:
        result: Future[Fetched] = Future()
        self._asked.put((work, result))
        return result

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            work, result = asked
            try:
                result.set_result(work())
            except BaseException as error:
                result.set_exception(error)

    def _ack_and_fetch(self, receipts: list[str], limit: int, wait: float) -> Fetched:
        self._wait, until = wait, time.monotonic() + wait
        acked, got = AckResult(0, [], []), Runs()
        if receipts:
            # Stale or missing ones are no fault: a reader that was too slow for its lease gets them again.
            acked, got = self._client.ack_and_receive_runs(
                receipts, limit=limit, wait=min(wait, LONGEST_WAIT), lease=self._lease, recipient=self._recipient
            )
        left = max(0.0, until - time.monotonic())
        if not got and (left or not receipts):
            got = self._client.receive_runs(limit=limit, wait=left, lease=self._lease, recipient=self._recipient)
        for receipt in receipts:
            del self._held[receipt]
        self._held.update((run.receipt, run) for run in got)
        self._wait = 0.0
        return acked, got

    def _give_back(self, finish: Callable[[Runs], Iterable[str]]) -> Fetched:
        done = self._held.keys() & finish(list(self._held.values()))
        left = [run for receipt, run in self._held.items() if receipt not in done]
        result = self._client._ack_last(done)
        self._client.release_all((receipt for run in left for receipt in run.receipts), counted=False)
        return result, []
