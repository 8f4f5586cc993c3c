"""Pipes: lines of stdin into a queue, and messages of a queue as lines on stdout.

tail -f access.log | python -m clients send --queue log
python -m clients receive --queue log --follow | grep 404
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

from clients.client import QueueClient
from clients.command_line import add_service_options, client_for, run
from clients.consuming import LONGEST_WAIT
from clients.messages import Message

BLOCK = 1024 * 1024  # bytes read from stdin at a time; what is there is sent, so a slow pipe's lines go at once
MOST_LINES = 1000  # in one request


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 only if all was done."""
    asked = _parser().parse_args(arguments)
    return run(asked.command, lambda: _send(asked) if asked.command == "send" else _receive(asked))


def _send(asked: argparse.Namespace) -> int:
    number = 0
    with client_for(asked) as client:
        for lines in _lines(sys.stdin.fileno()):
            for start in range(0, len(lines), MOST_LINES):
                batch = lines[start : start + MOST_LINES]
                client.send_many(_text(line, number + start + n + 1) for n, line in enumerate(batch))
            number += len(lines)
    return 0


def _receive(asked: argparse.Namespace) -> int:
    left: int | None = asked.limit
    with client_for(asked) as client:
        while left != 0:
            limit = asked.batch if left is None else min(asked.batch, left)
            wait = LONGEST_WAIT if asked.follow else asked.wait
            messages = client.receive(limit=limit, wait=wait, lease=asked.lease, recipient=asked.recipient)
            if messages:
                _write_out(client, messages)
            elif not asked.follow:
                break
            if left is not None:
                left -= len(messages)
    return 0


def _write_out(client: QueueClient, messages: list[Message]) -> None:
    """The messages' texts are in the pipe and the messages acked; or they are given back."""
    try:
        # Not through sys.stdout: where Python is told not to buffer, that may write a part and say nothing.
        left = memoryview(b"".join(message.text.encode() + b"\n" for message in messages))
        while left:
            left = left[os.write(sys.stdout.fileno(), left) :]
    except BaseException:
        client.give_back(messages)
        raise
    client.ack_many(messages)


def _lines(descriptor: int) -> Iterator[list[bytes]]:
    r"""Lines as they come, without the b"\n" that ends them."""
    rest = b""
    while block := os.read(descriptor, BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]


def _text(line: bytes, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise ValueError(f"line {number} is not UTF-8; the lines before its batch were sent") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clients", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    send = commands.add_parser("send", help="each line of stdin becomes a message")
    add_service_options(send, "default")
    receive = commands.add_parser("receive", help="each message's text becomes a line of stdout, and is acked then")
    add_service_options(receive, "default")
    receive.add_argument("--follow", action="store_true", help="wait for more when the queue is empty, for ever")
    receive.add_argument("--wait", type=float, default=0, metavar="S", help="wait that long for a first message")
    receive.add_argument("--limit", type=int, metavar="N", help="stop after N messages")
    receive.add_argument("--batch", type=int, default=100, metavar="N", help="messages in one request (1-1000)")
    receive.add_argument("--lease", type=float, default=60, metavar="S", help="when killed, they come back after that")
    receive.add_argument("--recipient", help="read what is addressed to this name")
    return parser


if __name__ == "__main__":
    sys.exit(main())
