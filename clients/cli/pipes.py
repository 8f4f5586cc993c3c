"""Pipes: lines of stdin into a queue, and messages of a queue as lines on stdout."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Iterator

from ..client import QueueClient
from ..column_batches import ColumnBatch
from ..consuming import LONGEST_WAIT
from ..errors import BadRequest, ProblemError, QueueError
from ..fetching import Fetcher
from ..messages import AckResult
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

BLOCK = 1024 * 1024  # bytes read from stdin at a time; what is there is sent, so a slow pipe's lines go at once
MOST_LINES = 1000  # in one request
PIECE = select.PIPE_BUF  # bytes that a pipe takes at once when it takes any
STUCK = 0.5  # seconds: for so long one that was interrupted waits for its pipe to take more
BATCH = 500  # messages: with 1000 it is a tenth faster, and twice as many come back late after a kill

SEND = """Send each line of stdin as a message.

    tail -f access.log | %(prog)s --queue log
"""
RECEIVE = """Print each message's text as a line. The command acks it once the pipe has accepted it, not once the next
command has read it. If the next command may stop early, like head, use --limit.

    %(prog)s --queue log --follow | grep 404
"""


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 only if all was done."""
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
    """As main, of the command queue-send."""
    parser = command_parser("queue-send", SEND)
    _add_send(parser)
    return _run(parser, arguments)


def receive_main(arguments: list[str] | None = None) -> int:
    """As main, of the command queue-receive."""
    parser = command_parser("queue-receive", RECEIVE)
    _add_receive(parser)
    return _run(parser, arguments)


def _run(parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    asked = parser.parse_args(arguments)
    return run(asked.name, lambda: asked.work(asked))


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


def _send(asked: argparse.Namespace) -> int:
    number = 1
    with client_for(asked) as client:
        for lines in _lines(sys.stdin.fileno()):
            for start in range(0, len(lines), MOST_LINES):
                batch = lines[start : start + MOST_LINES]
                _send_batch(client, batch, number)
                number += len(batch)
    return 0


def _send_batch(client: QueueClient, lines: list[bytes], number: int) -> None:
    """They are sent, of which the first is line `number`. Raises ValueError, which names the first that was not."""
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


def _receive(asked: argparse.Namespace) -> int:
    left = asked.limit or sys.maxsize
    wait = LONGEST_WAIT if asked.follow else asked.wait
    written: list[str] = []  # receipts, to be acked with the request for the next messages
    with client_for(asked) as client:
        fetcher = Fetcher(client, asked.lease, asked.recipient)
        try:
            while left:
                late, got = fetcher.ask(written, min(asked.batch, left), wait).result()
                _report_late(late, asked)
                if not got and not asked.follow:
                    return 0
                written = []
                _write_out(got, written)
                left -= sum(map(len, got))
            _report_late(client.ack_many(written), asked)
        except BaseException:
            fetcher.release_all(lambda held: written)
            raise
        finally:
            fetcher.close()
    return 0


def _write_out(runs: list[ColumnBatch], written: list[str]) -> None:
    """Put the texts in the pipe, then their receipts in `written`; not all of them if interrupted at a stuck pipe."""
    # Not through sys.stdout: where Python is told not to buffer, that may write a part and say nothing.
    left = memoryview("".join(f"{text}\n" for run in runs for text in run.texts).encode())
    with interruptions_kept() as came:
        while left:
            if select.select([], [sys.stdout.fileno()], [], STUCK)[1]:
                left = left[os.write(sys.stdout.fileno(), left[:PIECE]) :]
            elif came:
                return
        written += [run.receipt for run in runs]


def _report_late(result: AckResult, asked: argparse.Namespace) -> None:
    if result.stale:
        print(
            f"{asked.name}: the pipe accepted {len(result.stale)} messages only after their lease (--lease) had ended; "
            "they will be redelivered",
            file=sys.stderr,
        )


def _lines(descriptor: int) -> Iterator[list[bytes]]:
    r"""Lines as they come, without the b"\n" that ends them."""
    rest = b""
    while block := os.read(descriptor, BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]
