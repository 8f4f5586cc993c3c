"""Print a queue's messages, and hand them over to the next command in a pipe without losing one."""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import math
import os
import select
import stat
import sys
import termios
import time
from collections.abc import Sequence
from typing import Any, cast

from ..client import QueueClient
from ..column_batches import RUNS, column_batches_of
from ..errors import QueueError
from ..messages import AckResult, LeasedMessage, Source
from ..settling import RELEASES_WITHIN
from .command_line import (
    add_queue_option,
    add_reader_options,
    add_service_options,
    client_for,
    interruptions_kept,
    within,
)

PIECE = select.PIPE_BUF  # bytes that a pipe which is ready accepts without blocking
STUCK = 500  # milliseconds that an interrupted command waits for its pipe
PAUSE = 0.01  # seconds between two looks at a pipe that another command filled
FEWEST = 16  # messages of the first read; the next ones are larger if the pipe accepts them soon
MOST = 1000  # messages of a read
SOON = 1.0  # seconds

RECEIVE = """Print each message's text as a line, and ack it.

    %(prog)s --queue log --follow | grep 404
    %(prog)s --queue log | head -2

In a pipe, the next command gets one message at a time, which is acked once it has read it. So it may stop early, and
loses nothing.
"""


def add_receive(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(work=_receive)
    parser.add_argument("--limit", type=within(int, 1), metavar="N", help="stop after N messages (default: no limit)")
    parser.add_argument(
        "--follow", action="store_true", help="if the queue is empty, wait for more without limit (default: stop)"
    )
    parser.add_argument(
        "--wait",
        type=within(float, 0),
        default=0.0,
        metavar="S",
        help="if the queue is empty, wait this many seconds for more (default: %(default)g)",
    )
    parser.add_argument(
        "--batch",
        type=within(int, 1, MOST),
        default=1,
        metavar="N",
        help="messages that the next command gets at once: more are faster, "
        "but if it stops early, those that it had read are lost (default: %(default)s)",
    )
    add_reader_options(parser)
    parser.add_argument(
        "--json", action="store_true", help="print each message as JSON, with all its fields (default: its text)"
    )
    add_queue_option(parser)
    add_service_options(parser)


def _receive(options: argparse.Namespace) -> int:
    with client_for(options, options.queue) as client, interruptions_kept() as signals:
        _Receiver(client, options, signals).run()
    return 0


class _Receiver:
    """Leases messages, prints them, and acks those that were accepted in the request for the next ones."""

    def __init__(self, client: QueueClient, options: argparse.Namespace, signals: Sequence[int]) -> None:
        self._run = client._run
        self._reader = client._reader
        self._leased = client._leased
        self._options = options
        self._signals = signals
        self._source = Source(default=options.queue, recipient=options.recipient)
        self._output = Output(sys.stdout.fileno(), signals)
        self._accepted: list[str] = []  # receipts of messages to ack

    def run(self) -> None:
        """Print messages until the limit, the end of the wait, or a signal. Raises QueueError, BrokenPipeError."""
        options = self._options
        left, size = options.limit or sys.maxsize, max(FEWEST, options.batch)
        wait = math.inf if options.follow else options.wait
        last = time.monotonic()
        try:
            while left and not self._signals:
                asked = time.monotonic()
                documents = self._fetch(min(size, left), max(0.0, last + wait - asked))
                if documents:
                    left -= self._hand_over(documents, asked)
                    last = time.monotonic()
                    size = min(MOST, size * 2) if last < asked + SOON else max(options.batch, size // 2)
                elif time.monotonic() >= last + wait:
                    break
        except QueueError:
            if not self._signals:
                raise
        # An interrupted command does not wait long for a service that is down.
        self._ack(RELEASES_WITHIN if self._signals else None)

    def _fetch(self, limit: int, wait: float) -> list[dict[str, Any]]:
        """Ack what was accepted and lease the next messages, as soon as there are any."""
        wait, lease = min(wait, self._reader.longest_wait), self._options.lease
        headers = {} if self._options.json else {"Accept": RUNS}
        if not self._accepted:
            return self._run(self._reader.read(self._source, limit, wait, lease, headers, self._is_interrupted))
        acked, documents = self._run(
            self._reader.ack_and_read(self._accepted, self._source, limit, wait, lease, headers, self._is_interrupted)
        )
        self._report(acked)
        return documents

    def _hand_over(self, documents: list[dict[str, Any]], asked: float) -> int:
        """Print the messages and return how many were accepted; release the others. Raises BrokenPipeError."""
        runs = column_batches_of(documents)
        # A run has what the lease keeper uses of a message: queue and receipt.
        self._leased.keeper.renew(cast(list[LeasedMessage], runs), self._options.lease, asked)
        lines = map(_json, documents) if self._options.json else (f"{text}\n" for run in runs for text in run.texts)
        accepted = left = self._output.write([line.encode() for line in lines], self._options.batch)
        self._accepted, released = [], list[str]()
        for run in runs:
            if left >= len(run):
                self._accepted.append(run.receipt)
            else:
                self._leased.stop_renewing([run])
                self._accepted += run.receipts[: max(0, left)]
                released += run.receipts[max(0, left) :]
            left -= len(run)
        if released:
            self._ack(RELEASES_WITHIN)
            self._run(self._leased.release_all(released, self._source.name, counted=False))
        if self._output.is_broken:
            raise BrokenPipeError
        return accepted

    def _ack(self, retry_for: float | None) -> None:
        self._report(self._run(self._leased.ack_many(self._accepted, self._source.name, retry_for=retry_for)))

    def _is_interrupted(self) -> bool:
        return bool(self._signals)

    def _report(self, acked: AckResult) -> None:
        self._accepted = []
        if acked.stale:
            print(
                f"{self._options.name}: the leases of {len(acked.stale)} messages ended before they were printed; "
                "they will be redelivered",
                file=sys.stderr,
            )


def _json(document: dict[str, Any]) -> str:
    shown = {name: value for name, value in document.items() if name not in ("receipt", "leased_until")}
    return json.dumps(shown, ensure_ascii=False) + "\n"


class Output:
    """Stdout. If it is a pipe, a line counts as accepted once the reader has taken it out of the pipe.

    To wait for that, the pipe is reduced to one page: then it is ready for writing only when it is empty.
    """

    def __init__(self, descriptor: int, signals: Sequence[int]) -> None:
        self.is_broken = False  # the reader has ended
        self._descriptor = descriptor
        self._signals = signals
        self._is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        self._is_small = False
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, lines: list[bytes], batch: int) -> int:
        """Write `batch` lines at a time; return how many were accepted: all, unless interrupted or broken."""
        step = batch if self._is_pipe else len(lines)
        for start in range(0, len(lines), step):
            # Not through sys.stdout: unbuffered, it may write a part without an error.
            if not (self._put(b"".join(lines[start : start + step])) and self._is_taken()):
                return start
        return len(lines)

    def _put(self, data: bytes) -> bool:
        left = memoryview(data)
        while left:
            if not self._poll.poll(STUCK):
                if self._signals:
                    return False
                continue
            try:
                left = left[os.write(self._descriptor, left[:PIECE]) :]
            except BrokenPipeError:
                self.is_broken = True
                return False
        return True

    def _is_taken(self) -> bool:
        while self._is_pipe and self._unread():
            if self._is_reduced():
                ready = self._poll.poll(STUCK)
            else:
                time.sleep(PAUSE)
                ready = self._poll.poll(0)
            if ready and ready[0][1] & select.POLLERR:
                self.is_broken = True
                return not self._unread()
            if self._signals and (not ready or not self._is_small):
                return False
        return True

    def _unread(self) -> int:
        """Return how many bytes are in the pipe."""
        return int.from_bytes(fcntl.ioctl(self._descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)

    def _is_reduced(self) -> bool:
        if not self._is_small:
            try:
                fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, 1)
                self._is_small = True
            except OSError as error:
                if error.errno != errno.EBUSY:  # else another command filled more than a page of it
                    raise
        return self._is_small
