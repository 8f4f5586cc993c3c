"""Copy a file, line by line, through a queue.

    %(prog)s SRC DST           both halves at once, through a queue of its own
    %(prog)s --produce SRC     the halves apart: in two processes, on two machines,
    %(prog)s --consume DST     in any order, through the queue "copy"

The copy is identical to the byte, whatever is in the file, or the exit code is not 0 and DST is untouched. Killed at
any point and run again with the same arguments it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress

from .cli.command_line import LONGEST_LEASE, add_service_options, client_for, command_parser, program_name, run, within
from .client import QueueClient
from .copying.consumer import consume
from .copying.display import Display
from .copying.plan import CopyError, Plan, Unresumable, clear_away, delete_queue, find_begin_mark, queue_of
from .copying.source import Flow, produce, stored_already
from .copying.target import Target, check_target, digest_of
from .errors import QueueError, Unavailable, Unreachable

BATCH = 1000  # messages
MOST_LEASED = 1000  # messages in one read
QUEUE_OF_HALVES = "copy"
LEASE = 10.0  # seconds: long for one batch, short for who runs a killed copy again and waits for what it had leased
QUICK = 2.0  # seconds for a service that should be there already; after them the wait for it is told


def main(arguments: list[str] | None = None, prog: str = "queue-copy") -> int:
    """The exit code: 0 only if all was done."""
    parser = _parser(prog)
    asked = parser.parse_args(arguments)
    if bool(asked.produce) + bool(asked.consume) + (asked.source is not None and asked.target is not None) != 1:
        parser.error("give SRC and DST, or --produce SRC, or --consume DST")
    command = _produce if asked.produce else _consume if asked.consume else _copy
    same = "the same command" if asked.resume else "the same command without --no-resume"
    asked.name = program_name(prog)
    return run(asked.name, lambda: command(asked), if_interrupted=f"interrupted; run {same} to continue")


def copy(client: QueueClient, plan: Plan, target: Target, lease: float, display: Display) -> None:
    """The target is a copy of the source. Raises CopyError, QueueError, OSError, and then it is untouched."""
    stored = _stored(client, plan)
    if stored and target.is_new:
        # No .part file: a run was killed right after its rename, or somebody removed the file.
        if _is_in_place(plan, target):
            clear_away(client, display.say)
            target.discard()
            return
        delete_queue(client)
        stored = 0
    if not stored:
        target.start_afresh()
    flow = Flow()
    producing = _in_thread(lambda: produce(client, plan, stored, flow.sent))

    def written(size: int) -> None:
        display.moved(size)
        flow.written(size)

    try:
        consume(client, target, min(plan.batch, MOST_LEASED), lease, written, display.say, producing)
    except Unresumable:
        with suppress(QueueError):  # then the next run to this target does it, which finds the .part file
            _delete_queue_of(client, plan)
            target.discard()
        raise
    finally:
        flow.stop()


def _copy(asked: argparse.Namespace) -> int:
    plan = Plan.of(asked.source, asked.target, asked.batch)
    if plan.source == plan.target:
        raise CopyError(f"{asked.source} and {asked.target} are the same file")
    with Display(asked.name, plan.size) as display, _client(asked, plan.queue, display) as client:
        target = Target(asked.target, plan.id)  # before the queue is touched: it may be a running copy's
        try:
            _forget_unless_resumed(asked, client)
            others = [queue_of(copy) for copy in target.discard_others()]
            _delete_queues(client, others)
            copy(client, plan, target, asked.lease, display)
            _delete_queues(client, others)  # again: a killed run's last request may have come in after the first time
            display.complete()
        finally:
            target.close()
    return 0


def _delete_queue_of(client: QueueClient, plan: Plan) -> None:
    """Delete the client's queue if this copy is in it."""
    begin = find_begin_mark(client)
    if begin is not None and begin.copy == plan.id:
        delete_queue(client)


def _produce(asked: argparse.Namespace) -> int:
    plan = Plan.of(asked.produce, None, asked.batch)
    with Display(asked.name, plan.size) as display, _client(asked, QUEUE_OF_HALVES, display) as client:

        def sent(size: int) -> bool:
            display.moved(size)
            return True

        _forget_unless_resumed(asked, client)
        try:
            produce(client, plan, stored_already(client, plan), sent)
        except Unresumable:
            _delete_queue_of(client, plan)  # the consumer sees it, and ends
            raise
        display.complete()
    return 0


def _consume(asked: argparse.Namespace) -> int:
    check_target(asked.consume)
    with Display(asked.name, None) as display, _client(asked, QUEUE_OF_HALVES, display) as client:
        _forget_unless_resumed(asked, client)
        consume(client, asked.consume, min(asked.batch, MOST_LEASED), asked.lease, display.moved, display.say)
    return 0


def _client(asked: argparse.Namespace, queue: str, display: Display) -> QueueClient:
    """Of a service that answers. Raises Unreachable, Unavailable when it did not within `retry_for` seconds."""
    client = client_for(asked, asked.queue or queue)
    quick = min(QUICK, asked.retry_for)
    try:
        client.healthy(retry_for=quick)
    except (Unreachable, Unavailable) as error:
        if asked.retry_for > quick:
            display.say(f"{error}; retrying for {asked.retry_for - quick:g} s")
            client.healthy(retry_for=asked.retry_for - quick)
        else:
            raise
    return client


def _forget_unless_resumed(asked: argparse.Namespace, client: QueueClient) -> None:
    if not asked.resume:
        delete_queue(client)


def _delete_queues(client: QueueClient, queues: Iterable[str]) -> None:
    for queue in queues:
        delete_queue(client, queue)


def _stored(client: QueueClient, plan: Plan) -> int:
    """How much of the copy earlier runs sent. In a queue of its own, leftovers that do not fit are done away with."""
    try:
        return stored_already(client, plan)
    except CopyError:
        if client.queue != plan.queue:
            raise
        delete_queue(client)
        return 0


def _is_in_place(plan: Plan, target: Target) -> bool:
    with open(plan.source, "rb") as file:
        return target.is_in_place(plan.size, digest_of(file.fileno()))


def _in_thread(work: Callable[[], None]) -> Future[None]:
    result: Future[None] = Future()

    def run_work() -> None:
        try:
            work()
            result.set_result(None)
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run_work, name="copy-producer", daemon=True).start()
    return result


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, __doc__)
    parser.add_argument("source", metavar="SRC", nargs="?", help="file to copy")
    parser.add_argument("target", metavar="DST", nargs="?", help="target file; replaced at the end if it exists")
    parser.add_argument("--produce", metavar="SRC", help="only send the file's lines")
    parser.add_argument("--consume", metavar="DST", help="only write the lines that arrive")
    parser.add_argument(
        "--batch",
        type=within(int, 1, 10_000),
        default=BATCH,
        metavar="N",
        help="messages in one request (default: %(default)s)",
    )
    parser.add_argument(
        "--lease",
        type=within(float, 1, LONGEST_LEASE),
        default=LEASE,
        metavar="S",
        help="lease in seconds: how long a restarted copy may wait for unacked lines (default: %(default)g)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        default=True,
        help="continue an unfinished copy with the same arguments (default)",
    )
    parser.add_argument("--no-resume", action="store_false", dest="resume", help="delete the queue and start again")
    add_service_options(parser, None, f"one of the copy's own; {QUEUE_OF_HALVES} for --produce and --consume")
    return parser


if __name__ == "__main__":
    sys.exit(main(prog="python -m clients.copy_file"))
