"""Common to all commands: options and their checks, signals, and errors as one line on stderr."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from ..client import QueueClient
from ..copying.plan import CopyError
from ..errors import QueueError
from ..http.transport import DEFAULT_URL

Number = TypeVar("Number", int, float)

INTERRUPTED = 130  # the exit code that shells use for SIGINT
TERMINATED = 143  # … and for SIGTERM
LONGEST_LEASE = 43_200  # seconds


def command_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_service_options(parser: argparse.ArgumentParser, queue: str | None, queue_help: str) -> None:
    parser.add_argument("--url", help=f"URL of the service (default: $QUEUE_URL, or else {DEFAULT_URL})")
    parser.add_argument("--queue", default=queue, type=_name, help=f"queue to use (default: {queue_help})")
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


def client_for(arguments: argparse.Namespace, queue: str | None = None) -> QueueClient:
    return QueueClient(
        arguments.url, queue=queue or arguments.queue, token=arguments.token, retry_for=arguments.retry_for
    )


def program_name(prog: str) -> str:
    """Return the name that starts a line on stderr: copy_file for `python -m clients.copy_file`."""
    return prog.split()[-1].rpartition(".")[2]


def run(name: str, command: Callable[[], int], if_interrupted: str | None = None) -> int:
    """Run the command and return its exit code. Print an expected error as one line on stderr, and return 1.

    SIGTERM interrupts the command like SIGINT, so that it releases its messages.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if is_main else None
    try:
        return command()
    except KeyboardInterrupt as interrupt:
        if if_interrupted:
            print(f"{name}: {if_interrupted}", file=sys.stderr)
        return TERMINATED if isinstance(interrupt, _Terminated) else INTERRUPTED
    except BrokenPipeError:
        return 1  # the reader of stdout has ended, as usual in a pipe
    except (QueueError, CopyError, ValueError) as error:
        reason = str(error)
    except OSError as error:
        reason = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)
    print(f"{name}: {reason}", file=sys.stderr)
    return 1


class _Terminated(KeyboardInterrupt):
    pass


@contextmanager
def interruptions_kept() -> Iterator[list[int]]:
    """Delay SIGINT and SIGTERM until the block has ended; yield the list of those that arrived."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread alone
        yield signals
        return
    before = {
        number: signal.signal(number, lambda number, frame: signals.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if signals:
            signal.raise_signal(signals[0])


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text
