"""Common to all commands: options and their checks, signals, and errors and warnings as one line each on stderr."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from tqdm import tqdm

from ..client import QueueClient
from ..copying.plan import CopyError
from ..errors import QueueError, Unavailable, Unreachable
from ..http.calls import DEFAULT_URL
from ..log import log

Number = TypeVar("Number", int, float)

NAME = "queue-service"  # starts a line on stderr
INTERRUPTED = 130  # the exit code that shells use for SIGINT
TERMINATED = 143  # … and for SIGTERM
NO_SERVICE = os.EX_UNAVAILABLE  # the exit code if the service did not answer, or could not do what was asked
LONGEST_LEASE = 43_200  # seconds
QUIET = 1.0  # seconds in which threads that fail alike are reported once


def add_service_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help=f"URL of the service (default: $QUEUE_URL, or else {DEFAULT_URL})")
    parser.add_argument(
        "--token",
        help="secret of a token, if the service needs one "
        "(default: $QUEUE_TOKEN, which other users of this machine cannot see)",
    )
    parser.add_argument(
        "--retry-for",
        type=within(float, 0),
        default=30.0,
        metavar="S",
        help="seconds to keep retrying while the service does not respond (default: %(default)g)",
    )


def add_queue_option(parser: argparse.ArgumentParser, queue: str | None = "default", default: str = "default") -> None:
    parser.add_argument("--queue", default=queue, help=f"queue to use (default: {default})")


def add_reader_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lease",
        type=within(float, 1, LONGEST_LEASE),
        default=60.0,
        metavar="S",
        help="lease in seconds, renewed while the command runs: "
        "how long after a kill its messages are redelivered (default: %(default)g)",
    )
    parser.add_argument("--recipient", help="read messages for this recipient (default: unaddressed messages)")


def within(kind: Callable[[str], Number], low: float, high: float = math.inf) -> Callable[[str], Number]:
    """Return the `type` of an option: an int or a float in these bounds. argparse names the option in the error."""
    wanted = "a whole number" if kind is int else "a number"
    bounds = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"

    def parsed(text: str) -> Number:
        with suppress(ValueError):
            value = kind(text)
            if low <= value <= high:
                return value
        raise argparse.ArgumentTypeError(f"must be {wanted}, {bounds}, not {text!r}")

    return parsed


def client_for(options: argparse.Namespace, queue: str) -> QueueClient:
    return QueueClient(options.url, queue=queue, token=options.token, retry_for=options.retry_for)


def run(options: argparse.Namespace) -> int:
    """Call the command's `work` and return its exit code. Print an expected error as one line on stderr.

    The code is 1 then, or 69 without a service. SIGTERM interrupts the command like SIGINT, so that it releases its
    messages. Warnings of the client go to stderr.
    """
    name: str = options.name
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if is_main else None
    warnings = _Warnings(name)
    log.addHandler(warnings)
    try:
        code = int(options.work(options))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        if "if_interrupted" in options:
            print(f"{name}: {options.if_interrupted}", file=sys.stderr)
        return TERMINATED if isinstance(interrupt, _Terminated) else INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has ended, as usual in a pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its exit
        return 1
    except (QueueError, CopyError, ValueError) as error:
        reason = str(error)
        code = NO_SERVICE if isinstance(error.__cause__ or error, Unreachable | Unavailable) else 1
    except OSError as error:
        reason, code = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part), 1
    finally:
        log.removeHandler(warnings)
        if is_main:
            signal.signal(signal.SIGTERM, before)
    print(f"{name}: {reason}", file=sys.stderr)
    return code


class _Warnings(logging.Handler):
    """Prints warnings as sentences, above a progress bar if there is one."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.WARNING)
        self._name = name
        self._printed: dict[object, float] = {}  # when, by format

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if record.exc_info or now - self._printed.get(record.msg, -math.inf) > QUIET:
            self._printed[record.msg] = now
            error = record.exc_info[1] if record.exc_info else None
            reason = f": {error}" if error else ""
            tqdm.write(f"{self._name}: {record.getMessage()}{reason}", file=sys.stderr)


class _Terminated(KeyboardInterrupt):
    pass


@contextmanager
def interruptions_kept() -> Iterator[list[int]]:
    """Delay SIGINT and SIGTERM until the block has ended; yield the list of those that arrived."""
    signals: list[int] = []
    with _handled(signals.append):
        yield signals
    if signals:
        signal.raise_signal(signals[0])


@contextmanager
def stop_at_signal() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT or SIGTERM arrived. A second one has its usual effect."""
    signals: list[int] = []
    with _handled(signals.append, once=True):
        yield lambda: bool(signals)


@contextmanager
def _handled(handle: Callable[[int], None], once: bool = False) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread alone
        yield
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handler(number: int, frame: object) -> None:
        handle(number)
        if once:
            restore()

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()


def _terminate(number: int, frame: object) -> None:
    raise _Terminated
