"""Send texts, or lines of stdin, to a queue."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, cast

from ..client import QueueClient
from ..errors import BadRequest, ProblemError, QueueError
from ..messages import Outgoing, drop_none
from .command_line import add_queue_option, add_service_options, client_for, within

BLOCK = 1024 * 1024  # bytes read from stdin at a time; fewer are sent at once, so a slow pipe's lines do not wait
MOST_LINES = 1000  # in one request
ENVELOPE = {"id", "queue", "sent_at", "receive_count", "state", "leased_until", "leased_by"}  # printed with a message

SEND = """Send each TEXT as a message, and print its id; or, without a TEXT, send each line of stdin.

    %(prog)s --queue thumbnails --priority 5 cat.png
    tail -f access.log | %(prog)s --queue log
"""


def add_send(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(work=_send)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="text of a message (default: the lines of stdin)")
    parser.add_argument(
        "--json",
        action="store_true",
        help='each TEXT or line is a message as JSON: {"text": "cat.png", "priority": 5} (default: it is the text). '
        "A field in it takes precedence over the option. What `receive --json` adds to a message is ignored",
    )
    parser.add_argument("--key", help="deliver the messages of one key in order, one at a time (default: no key)")
    parser.add_argument(
        "--priority", type=within(int, 0, 9), metavar="N", help="0 to 9; higher ones are delivered first (default: 0)"
    )
    parser.add_argument("--recipient", help="only readers that name it receive the messages (default: any reader)")
    parser.add_argument(
        "--delay", type=within(float, 0), metavar="S", help="seconds until delivery (default: the queue's setting)"
    )
    parser.add_argument(
        "--ttl", type=within(float, 0.001), metavar="S", help="seconds in which to deliver them (default: no limit)"
    )
    parser.add_argument(
        "--attribute",
        type=_attribute,
        action="append",
        metavar="NAME=VALUE",
        help="an attribute of each message; the option may be repeated (default: none)",
    )
    add_queue_option(parser)
    add_service_options(parser)


def _attribute(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, not {text!r}")
    return name, value


def _send(options: argparse.Namespace) -> int:
    fields = drop_none(
        key=options.key, priority=options.priority, recipient=options.recipient, delay=options.delay, ttl=options.ttl,
        attributes=dict(options.attribute) if options.attribute else None,
    )  # fmt: skip
    sender = _Sender(client_for(options, options.queue), fields, options.json)
    if options.texts:
        texts = [text.encode(errors="surrogateescape") for text in options.texts]
        print(*sender.send(texts, "TEXT", 1), sep="\n")
        return 0
    number = 1
    for lines in _lines(sys.stdin.fileno()):
        for start in range(0, len(lines), MOST_LINES):
            batch = lines[start : start + MOST_LINES]
            sender.send(batch, "line", number)
            number += len(batch)
    return 0


class _Sender:
    """Sends lines as messages that have these fields too."""

    def __init__(self, client: QueueClient, fields: dict[str, Any], is_json: bool) -> None:
        self._client = client
        self._fields = fields
        self._is_json = is_json

    def send(self, lines: list[bytes], noun: str, number: int) -> list[str]:
        """Send the lines and return their ids; the first is line `number`.

        Raises ValueError, which names the first line that was not sent, after all lines before it were.
        """
        messages: list[str | Outgoing] = []
        for line in lines:
            try:
                messages.append(self._message(line))
            except ValueError as error:
                self.send(lines[: len(messages)], noun, number)
                raise _unsent(noun, number + len(messages), error) from None
        try:
            return self._client.send_many(messages)
        except BadRequest as error:
            first = len(lines) // 2 if error.status == 413 else error.index
            if not first:
                raise _unsent(noun, number, error) from error
            ids = self.send(lines[:first], noun, number)
            return ids + self.send(lines[first:], noun, number + first)
        except QueueError as error:
            if isinstance(error, ProblemError) and error.status < 500:
                raise ValueError(f"{error}; {noun} {number} and those after it were not sent") from error
            tried = f"{noun} {number}" if len(lines) == 1 else f"{noun}s {number} to {number + len(lines) - 1}"
            raise ValueError(f"{error}; {tried} may have been sent, those after were not") from error

    def _message(self, line: bytes) -> str | Outgoing:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise ValueError("it is not UTF-8") from None
        if not self._is_json:
            return cast(Outgoing, {"text": text, **self._fields}) if self._fields else text
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise ValueError("it is not a JSON object")
        own = {name: value for name, value in document.items() if name not in ENVELOPE}
        return cast(Outgoing, self._fields | own)


def _unsent(noun: str, number: int, reason: Exception) -> ValueError:
    return ValueError(f"{noun} {number}: {reason}; this {noun} and those after it were not sent")


def _lines(descriptor: int) -> Iterator[list[bytes]]:
    r"""Yield lines as they arrive, without the b"\n" that ends them."""
    rest = b""
    while block := os.read(descriptor, BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]
