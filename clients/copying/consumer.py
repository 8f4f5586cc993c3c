"""The consuming half of a file copy: messages leased in batches, written, acked; the next ones fetched meanwhile."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..client import QueueClient
from ..column_batches import ColumnBatch
from ..fetching import Fetched, Fetcher, Runs
from .plan import CopyError, EndMark, Unresumable, clear_away, delete_queue, find_begin_mark, totals
from .target import Target

WAIT = 0.5  # seconds of one poll: how late a fault in the other half, or an interrupt, may be seen
LONG_QUIET = 5.0  # seconds after which a producer that sends nothing more is worth a word


def consume(
    client: QueueClient,
    target: Target | str,
    limit: int,
    lease: float,
    written: Callable[[int], object],
    say: Callable[[str], object],
    producing: Future[None] | None = None,
) -> None:
    """The target is in its place and the queue is gone. Raises CopyError, QueueError, OSError.

    A target given as a path is opened for whichever copy comes through the queue. `limit` messages are leased at
    once, for `lease` seconds: if that was too short they come again. `written` is told of the bytes that were
    written, `say` what is waited for. A fault of `producing` is raised at once.
    """
    fetcher = Fetcher(client, lease)
    end: EndMark | None = None
    asked, unacked, quiet = fetcher.ask([], limit, WAIT), list[str](), 0.0
    seen = False  # a message
    try:
        while True:
            got = _result(asked, producing)
            quiet = 0.0 if got else quiet + WAIT
            if not got and not unacked:  # so no poll is on its way, which could take a message of the queue's next copy
                if end and _only_marks_left(client):
                    break
                if seen and isinstance(target, Target):
                    _check_is_there(client, target)
                _tell_what_is_waited_for(client, say, end, quiet, producing)
            lines, ends = _sorted(got)
            asked = fetcher.ask(unacked, limit, 0 if ends or (end and unacked) else WAIT)
            if isinstance(target, str):
                if not got:
                    continue
                target = _open(client, target)
            written(target.write(lines))
            seen = seen or bool(got)
            unacked = [run.receipt for run in lines]
            end = _checked(ends[-1], target) if ends else end
            if not got and not end:
                _check_still_coming(client, producing)
        assert isinstance(target, Target)
        _finish(client, target, end, say)
    except KeyboardInterrupt:
        # The next run need not wait for leases to end. To write and ack lines is one request, to give them back many.
        fetcher.release_all(lambda held: _written(held, target))
        raise
    except Unresumable:
        if producing is None and isinstance(target, Target):
            target.discard()
        raise
    finally:
        fetcher.close()
        if isinstance(target, Target):
            target.close()


def _written(held: Runs, target: Target | str) -> list[str]:
    """The receipts of the lines, which are written now."""
    if isinstance(target, str):
        return []
    lines, _ = _sorted(held)
    target.write(lines)
    return [run.receipt for run in lines]


def _result(asked: Future[Fetched], producing: Future[None] | None) -> Runs:
    """The next messages; or the producer's fault, as soon as there is one."""
    if producing is not None and not producing.done():
        either: list[Future[Any]] = [asked, producing]
        concurrent.futures.wait(either, return_when=concurrent.futures.FIRST_COMPLETED)
    if producing is not None and producing.done():
        producing.result()
    _, got = asked.result()
    return got


def _sorted(got: Runs) -> tuple[Runs, Runs]:
    """Lines and end marks."""
    return [run for run in got if "end" not in run.attributes], [run for run in got if "end" in run.attributes]


def _tell_what_is_waited_for(
    client: QueueClient, say: Callable[[str], object], end: EndMark | None, quiet: float, producing: Future[None] | None
) -> None:
    """Says it when nothing came for `quiet` seconds, though this run holds no line."""
    counts = totals(client)
    if end or (counts and counts["leased"]):
        say("waiting for lines that an interrupted run has leased; they come when its lease ends")
    elif producing is None and not (counts and counts["sent"]):
        say(f"waiting for a producer: queue '{client.queue}' has no lines yet")
    elif producing is None and quiet > LONG_QUIET:
        say(f"waiting for the rest: the producer has not sent the end of the file to queue '{client.queue}' yet")


def _finish(client: QueueClient, target: Target, end: EndMark | None, say: Callable[[str], object]) -> None:
    assert end is not None
    try:
        target.finish(end)
    except CopyError:
        delete_queue(client)  # so that the same copy, run again, starts afresh
        raise
    clear_away(client, say)


def _open(client: QueueClient, path: str) -> Target:
    begin = find_begin_mark(client)
    if begin is None:
        raise CopyError(f"queue '{client.queue}' contains messages that do not belong to a file copy")
    target = Target(path, begin.copy)
    target.discard_others()
    return target


def _checked(marks: ColumnBatch, target: Target) -> EndMark:
    attributes: dict[str, Any] = {name: values[-1] for name, values in marks.attributes.items()}
    if attributes.get("copy") != target.copy:
        raise CopyError(f"two copies used queue '{marks.queue}' at once; run them again, one after the other")
    return EndMark(attributes["copy"], attributes["size"], attributes["count"], attributes["sha256"])


def _only_marks_left(client: QueueClient) -> bool:
    """Whether all lines are acked, those of killed runs too, which come back when their leases end."""
    left = client.peek(limit=10)
    return all("copy" in message.attributes for message in left)


def _check_is_there(client: QueueClient, target: Target) -> None:
    begin = find_begin_mark(client)
    if begin is None or begin.copy != target.copy:
        raise _disturbed(client)


def _check_still_coming(client: QueueClient, producing: Future[None] | None) -> None:
    """Raises Unresumable when all was sent and the end mark, which no run has seen, is not in the queue."""
    if producing is not None and producing.done():
        left = client.peek(limit=10)
        if len(left) < 10 and not any("end" in message.attributes for message in left):
            raise _disturbed(client)


def _disturbed(client: QueueClient) -> Unresumable:
    return Unresumable(f"queue '{client.queue}' was deleted, or read by another client, during the copy")
