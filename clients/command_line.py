"""What the commands share: options for the service, and faults as one line on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from clients.client import QueueClient
from clients.copy_plan import CopyError
from clients.errors import QueueError

INTERRUPTED = 130  # what a shell makes of SIGINT


def add_service_options(parser: argparse.ArgumentParser, queue: str | None) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:5000", help="the queue service (default: %(default)s)")
    parser.add_argument("--queue", default=queue, help=f"queue to use (default: {queue or 'one of its own'})")
    parser.add_argument("--token", help="access token (default: $QUEUE_TOKEN, which other users cannot see)")
    parser.add_argument(
        "--patience",
        type=float,
        default=30.0,
        metavar="S",
        help="how long to go on trying when the service does not answer (default: %(default)g)",
    )


def client_for(arguments: argparse.Namespace, queue: str | None = None) -> QueueClient:
    token = arguments.token or os.environ.get("QUEUE_TOKEN")
    return QueueClient(arguments.url, queue=queue or arguments.queue, token=token, retry_for=arguments.patience)


def run(name: str, command: Callable[[], int]) -> int:
    """The command's exit code; an expected fault is one line on stderr and 1."""
    try:
        return command()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return 1  # nobody reads stdout any more: a pipe's usual end
    except (QueueError, CopyError, ValueError) as error:
        reason = str(error)
    except OSError as error:
        reason = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    print(f"{name}: {reason}", file=sys.stderr)
    return 1
