"""Send lines of stdin to a queue, or print a queue's messages as lines."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Iterator

from ..client import QueueClient
from ..column_batches import ColumnBatch
from ..errors import BadRequest, ProblemError, QueueError
from ..fetching import Fetcher
from ..messages import AckResult
from ..reading import LONGEST_WAIT
from .command_line import (
    LONGEST_LEASE,
    add_service_options,
    client_for,
    command_parser,
    interruptions_kept,
    program_name,
    run,
    within,
)

BLOCK = 1024 * 1024  # bytes read from stdin at a time; fewer are sent at once, so a slow pipe's lines do not wait
MOST_LINES = 1000  # in one request
PIECE = select.PIPE_BUF  # bytes that a pipe which is ready accepts without blocking
STUCK = 0.5  # seconds that an interrupted command waits for its pipe to accept more
BATCH = 500  # messages: 1000 is a tenth faster, but a kill then delays twice as many

SEND = """Send each line of stdin as a message.

    tail -f access.log | %(prog)s --queue log
"""
RECEIVE = """Print each message's text as a line. The command acks it once the pipe has accepted it, not once the next
command has read it. If the next command may stop early, like head, use --limit.

    %(prog)s --queue log --follow | grep 404
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 only if all was done."""
    parser = command_parser("python -m clients", __doc__)
    commands = parser.add_subparsers(required=True)
    for name, add_options, description in (("send", _add_send, SEND), ("receive", _add_receive, RECEIVE)):
        command = commands.add_parser(
            name,
            help=description.partition(".")[0].lower(),
            description=description,
            formatter_class=parser.formatter_class,
        )
        add_options(command)
    return _run(parser, arguments)


def send_main(arguments: list[str] | None = None) -> int:
    """Run queue-send and return its exit code."""
    parser = command_parser("queue-send", SEND)
    _add_send(parser)
    return _run(parser, arguments)


def receive_main(arguments: list[str] | None = None) -> int:
    """Run queue-receive and return its exit code."""
    parser = command_parser("queue-receive", RECEIVE)
    _add_receive(parser)
    return _run(parser, arguments)


def _run(parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    options = parser.parse_args(arguments)
    return run(options.name, lambda: options.work(options))


def _add_send(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(work=_send, name=program_name(parser.prog))
    add_service_options(parser, "default", "default")


def _add_receive(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(work=_receive, name=program_name(parser.prog))
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
        type=within(int, 1, 1000),
        default=BATCH,
        metavar="N",
        help="messages in one request (default: %(default)s)",
    )
    parser.add_argument(
        "--lease",
        type=within(float, 1, LONGEST_LEASE),
        default=60.0,
        metavar="S",
        help="lease in seconds: a batch not written within it is redelivered, as after a kill (default: %(default)g)",
    )
    parser.add_argument("--recipient", help="read messages for this recipient (default: unaddressed messages)")
    add_service_options(parser, "default", "default")


def _send(options: argparse.Namespace) -> int:
    number = 1
    with client_for(options) as client:
        for lines in _lines(sys.stdin.fileno()):
            for start in range(0, len(lines), MOST_LINES):
                batch = lines[start : start + MOST_LINES]
                _send_batch(client, batch, number)
                number += len(batch)
    return 0


def _send_batch(client: QueueClient, lines: list[bytes], number: int) -> None:
    """Send the lines; the first is line `number`. Raises ValueError, which names the first line not sent."""
    texts = []
    for line in lines:
        try:
            texts.append(line.decode())
        except UnicodeDecodeError:
            _send_batch(client, lines[: len(texts)], number)
            wrong = number + len(texts)
            raise ValueError(f"line {wrong} is not UTF-8; this line and those after it were not sent") from None
    try:
        client.send_many(texts)
    except BadRequest as error:
        if error.status != 413 or len(lines) == 1:
            raise ValueError(f"line {number}: {error}; this line and those after it were not sent") from error
        half = len(lines) // 2
        _send_batch(client, lines[:half], number)
        _send_batch(client, lines[half:], number + half)
    except QueueError as error:
        if isinstance(error, ProblemError) and error.status < 500:
            raise ValueError(f"{error}; line {number} and those after it were not sent") from error
        last = number + len(lines) - 1
        raise ValueError(f"{error}; lines {number} to {last} may have been sent, those after them were not") from error


def _receive(options: argparse.Namespace) -> int:
    left = options.limit or sys.maxsize
    wait = LONGEST_WAIT if options.follow else options.wait
    written: list[str] = []  # receipts, acked by the request for the next messages
    with client_for(options) as client:
        fetcher = Fetcher(client, options.lease, options.recipient)
        try:
            while left:
                late, runs = fetcher.ask(written, min(options.batch, left), wait).result()
                _report_late(late, options)
                if not runs and not options.follow:
                    return 0
                written = []
                _write_out(runs, written)
                left -= sum(map(len, runs))
            _report_late(client.ack_many(written), options)
        except BaseException:
            fetcher.release_all(lambda held: written)
            raise
        finally:
            fetcher.close()
    return 0


def _write_out(runs: list[ColumnBatch], written: list[str]) -> None:
    """Write the texts to the pipe and add their receipts to `written`; return early if interrupted at a stuck pipe."""
    # Not through sys.stdout: unbuffered, it may write a part without an error.
    left = memoryview("".join(f"{text}\n" for run in runs for text in run.texts).encode())
    with interruptions_kept() as signals:
        while left:
            if select.select([], [sys.stdout.fileno()], [], STUCK)[1]:
                left = left[os.write(sys.stdout.fileno(), left[:PIECE]) :]
            elif signals:
                return
        written += [run.receipt for run in runs]


def _report_late(result: AckResult, options: argparse.Namespace) -> None:
    if result.stale:
        print(
            f"{options.name}: the pipe accepted {len(result.stale)} messages only after their lease (--lease) "
            "had ended; they will be redelivered",
            file=sys.stderr,
        )


def _lines(descriptor: int) -> Iterator[list[bytes]]:
    r"""Yield lines as they arrive, without the b"\n" that ends them."""
    rest = b""
    while block := os.read(descriptor, BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]
