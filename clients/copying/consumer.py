"""The consuming half of a file copy: lease messages in batches, write and ack them, fetch the next ones meanwhile."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from ..client import QueueClient
from ..column_batches import ColumnBatch
from ..fetching import Fetcher, Results, Runs
from .plan import CopyError, EndMark, Unresumable, clear_away, delete_queue, find_begin_mark, totals
from .source import Producing
from .target import Target

WAIT = 0.5  # seconds of one poll: the longest delay before an error of the other half, or an interrupt, is seen
LONG_QUIET = 5.0  # seconds without a message after which the wait for the producer is reported


def consume(
    client: QueueClient,
    target: Target | str,
    limit: int,
    lease: float,
    written: Callable[[int], object],
    say: Callable[[str], object],
    producing: Producing | None = None,
) -> None:
    """Write the target, put it in place and delete the queue. Raises CopyError, QueueError, OSError.

    A path as the target is opened for the copy that is in the queue. `limit` messages are leased at once, for `lease`
    seconds; if that is too short they are redelivered. Calls `written` with numbers of bytes, and `say` with the
    reason for a wait. Raises an error of `producing`.
    """
    results: Results = producing.results if producing else queue.SimpleQueue()
    fetcher = Fetcher(client, lease, results)
    end: EndMark | None = None
    unacked, quiet = list[str](), 0.0
    seen = False  # whether a message arrived
    try:
        fetcher.ask([], limit, WAIT)
        while True:
            runs = results.get()
            if isinstance(runs, BaseException):
                raise runs
            quiet = 0.0 if runs else quiet + WAIT
            if not runs and not unacked:  # no poll is under way that could lease a message of the queue's next copy
                if end and _only_marks_left(client):
                    break
                if seen and isinstance(target, Target):
                    _check_begin_mark(client, target)
                _say_why_it_waits(client, say, end, quiet, producing)
            lines, ends = _split(runs)
            fetcher.ask(unacked, limit, 0 if ends or (end and unacked) else WAIT)
            if isinstance(target, str):
                if not runs:
                    continue
                target = _open(client, target)
            written(target.write(lines))
            seen = seen or bool(runs)
            unacked = [run.receipt for run in lines]
            end = _parse_end_mark(ends[-1], target) if ends else end
            if not runs and not end:
                _check_still_coming(client, producing)
        assert isinstance(target, Target)
        _finish(client, target, end, say)
    except KeyboardInterrupt:
        # So the next run need not wait for leases. To ack lines takes one request, to release them many.
        fetcher.release_all(lambda held: _write(held, target))
        raise
    except Unresumable:
        if producing is None and isinstance(target, Target):
            target.discard()
        raise
    finally:
        fetcher.close()
        if isinstance(target, Target):
            target.close()


def _write(held: Runs, target: Target | str) -> list[str]:
    """Write the lines and return their receipts."""
    if isinstance(target, str):
        return []
    lines, _ = _split(held)
    target.write(lines)
    return [run.receipt for run in lines]


def _split(runs: Runs) -> tuple[Runs, Runs]:
    """Return lines and end marks."""
    return [run for run in runs if "end" not in run.attributes], [run for run in runs if "end" in run.attributes]


def _say_why_it_waits(
    client: QueueClient, say: Callable[[str], object], end: EndMark | None, quiet: float, producing: Producing | None
) -> None:
    """Say why nothing arrived for `quiet` seconds while this run has no lines leased."""
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
        delete_queue(client)  # so that the next run of the same copy starts again
        raise
    clear_away(client, say)


def _open(client: QueueClient, path: str) -> Target:
    begin = find_begin_mark(client)
    if begin is None:
        raise CopyError(f"queue '{client.queue}' contains messages that do not belong to a file copy")
    target = Target(path, begin.copy)
    target.discard_others()
    return target


def _parse_end_mark(marks: ColumnBatch, target: Target) -> EndMark:
    attributes: dict[str, Any] = {name: values[-1] for name, values in marks.attributes.items()}
    if attributes.get("copy") != target.copy:
        raise CopyError(f"two copies used queue '{marks.queue}' at once; run them again, one after the other")
    return EndMark(**{name: attributes[name] for name in ("copy", "size", "count", "sha256", "mode")})


def _only_marks_left(client: QueueClient) -> bool:
    """Return whether all lines are acked, including those that killed runs leased."""
    left = client.peek(limit=10)
    return all("copy" in message.attributes for message in left)


def _check_begin_mark(client: QueueClient, target: Target) -> None:
    begin = find_begin_mark(client)
    if begin is None or begin.copy != target.copy:
        raise _disturbed(client)


def _check_still_coming(client: QueueClient, producing: Producing | None) -> None:
    """Raise Unresumable if all was sent, no run has seen the end mark, and it is not in the queue."""
    if producing is not None and producing.has_sent_all:
        left = client.peek(limit=10)
        if len(left) < 10 and not any("end" in message.attributes for message in left):
            raise _disturbed(client)


def _disturbed(client: QueueClient) -> Unresumable:
    return Unresumable(f"queue '{client.queue}' was deleted, or read by another client, during the copy")
