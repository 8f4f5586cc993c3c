"""The consuming half of a file copy: messages leased in batches, written, acked; the next ones fetched meanwhile."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from clients.client import QueueClient
from clients.copy_plan import CopyError, EndMark, delete_queue, find_begin_mark
from clients.copy_target import Target

WAIT = 0.5  # seconds of one poll: how late a fault in the other half, or an interrupt, may be seen

Documents = list[dict[str, Any]]


def consume(
    client: QueueClient,
    target: Target | str,
    limit: int,
    lease: float,
    written: Callable[[int], object],
    producing: Future[None] | None = None,
) -> None:
    """The target is in its place and the queue is gone. Raises CopyError, QueueError, OSError.

    A target given as a path is opened for whichever copy comes through the queue. `limit` messages are leased at
    once, for `lease` seconds: if that was too short they come again. `written` is told of the bytes that were
    written. A fault of `producing` is raised at once.
    """
    fetcher = Fetcher(client, limit, lease)
    end: EndMark | None = None
    asked, unacked = fetcher.ask([], WAIT), list[str]()
    try:
        while True:
            got = _result(asked, producing)
            if end and not got and not unacked and _only_marks_left(client):
                break  # with no poll on its way, which could take a message of the queue's next copy
            lines, ends = _sorted(got)
            asked = fetcher.ask(unacked, 0 if ends or (end and unacked) else WAIT)
            if isinstance(target, str):
                if not got:
                    continue
                target = _open(client, target)
            written(target.write(lines))
            unacked = [line["receipt"] for line in lines]
            end = _checked(ends[-1], target) if ends else end
            if not got and not end:
                _check_still_coming(client, producing)
        assert isinstance(target, Target)
        try:
            target.finish(end)
        except CopyError:
            delete_queue(client)  # so that the same copy, run again, starts afresh
            raise
        delete_queue(client)
    finally:
        fetcher.close()
        if isinstance(target, Target):
            target.close()


class Fetcher:
    """Acks what was written and fetches what comes next, on a thread of its own, one request after the other."""

    def __init__(self, client: QueueClient, limit: int, lease: float) -> None:
        self._client = client
        self._limit = limit
        self._lease = lease
        self._asked: queue.SimpleQueue[tuple[list[str], float, Future[Documents]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="copy-fetcher", daemon=True).start()

    def ask(self, receipts: list[str], wait: float) -> Future[Documents]:
        """The next messages, when there are any or `wait` seconds have passed; the receipts are acked by then."""
        result: Future[Documents] = Future()
        self._asked.put((receipts, wait, result))
        return result

    def close(self) -> None:
        """The thread ends, after what it is doing."""
        self._asked.put(None)

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            receipts, wait, result = asked
            try:
                result.set_result(self._ack_and_fetch(receipts, wait))
            except BaseException as error:
                result.set_exception(error)

    def _ack_and_fetch(self, receipts: list[str], wait: float) -> Documents:
        if not receipts:
            return self._client.receive_documents(limit=self._limit, wait=wait, lease=self._lease)
        # Stale or missing ones are no fault: who was too slow for its lease finds these lines again.
        _, got = self._client.ack_and_receive(receipts, limit=self._limit, wait=wait, lease=self._lease)
        return got


def _result(asked: Future[Documents], producing: Future[None] | None) -> Documents:
    """The next messages; or the producer's fault, as soon as there is one."""
    if producing is not None and not producing.done():
        either: list[Future[Any]] = [asked, producing]
        concurrent.futures.wait(either, return_when=concurrent.futures.FIRST_COMPLETED)
    if producing is not None and producing.done():
        producing.result()
    return asked.result()


def _sorted(got: Documents) -> tuple[Documents, Documents]:
    """Lines and end marks."""
    ends = [message for message in got if "end" in message.get("attributes", ())]
    return ([message for message in got if message not in ends] if ends else got), ends


def _open(client: QueueClient, path: str) -> Target:
    begin = find_begin_mark(client)
    if begin is None:
        raise CopyError(f"queue '{client.queue}' holds messages that are not of a file copy")
    target = Target(path, begin.copy)
    target.discard_others(lambda copy: None)
    return target


def _checked(mark: dict[str, Any], target: Target) -> EndMark:
    attributes = mark["attributes"]
    if attributes.get("copy") != target.copy:
        raise CopyError(f"two copies went through queue '{mark['queue']}' at once; run them again, one by one")
    return EndMark(attributes["copy"], attributes["size"], attributes["count"], attributes["sha256"])


def _only_marks_left(client: QueueClient) -> bool:
    """Whether all lines are acked, those of killed runs too, which come back when their leases end."""
    left = client.peek(limit=10)
    return all("copy" in message.attributes for message in left)


def _check_still_coming(client: QueueClient, producing: Future[None] | None) -> None:
    """Raises CopyError when all was sent and the end mark, which nobody has seen, is not in the queue."""
    if producing is not None and producing.done():
        left = client.peek(limit=10)
        if len(left) < 10 and not any("end" in message.attributes for message in left):
            raise CopyError(f"queue '{client.queue}' was deleted, or read by somebody else, during the copy")
