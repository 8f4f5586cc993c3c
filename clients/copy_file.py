"""Copy a file, line by line, through a queue.

    %(prog)s SRC DST           both halves at once, through a queue of its own
    %(prog)s --produce SRC     one half each, in two processes or on two machines,
    %(prog)s --consume DST     in any order, through the queue "copy"

The copy is identical to the byte, or the exit code is not 0 and DST is unchanged. To continue an interrupted copy, run
the same command again.
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
LEASE = 10.0  # seconds: long for one batch, short for a restarted copy that waits for leased lines
QUICK = 2.0  # seconds for a service to answer before the wait for it is reported


def main(arguments: list[str] | None = None, prog: str = "queue-copy") -> int:
    """Run the command and return its exit code: 0 only if all was copied."""
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    if bool(options.produce) + bool(options.consume) + (options.source is not None and options.target is not None) != 1:
        parser.error("give SRC and DST, or --produce SRC, or --consume DST")
    command = _produce if options.produce else _consume if options.consume else _copy
    same = "the same command" if options.resume else "the same command without --no-resume"
    options.name = program_name(prog)
    return run(options.name, lambda: command(options), if_interrupted=f"interrupted; run {same} to continue")


def copy(client: QueueClient, plan: Plan, target: Target, lease: float, display: Display) -> None:
    """Make the target a copy of the source. Raises CopyError, QueueError, OSError; the target is unchanged then."""
    stored = _stored(client, plan)
    if stored and target.is_new:
        # No .part file: a run was killed right after its rename, or a user deleted the file.
        if _is_in_place(plan, target):
            clear_away(client, display.say)
            target.discard()
            return
        delete_queue(client)
        stored = 0
    if not stored:
        target.start_afresh()
    flow = Flow()
    producing = _start(lambda: produce(client, plan, stored, flow.sent))

    def written(size: int) -> None:
        display.moved(size)
        flow.written(size)

    try:
        consume(client, target, min(plan.batch, MOST_LEASED), lease, written, display.say, producing)
    except Unresumable:
        with suppress(QueueError):  # the next run to this target finds the .part file, and deletes the queue
            _delete_queue_of(client, plan)
            target.discard()
        raise
    finally:
        flow.stop()


def _copy(options: argparse.Namespace) -> int:
    plan = Plan.of(options.source, options.target, options.batch)
    if plan.source == plan.target:
        raise CopyError(f"{options.source} and {options.target} are the same file")
    with Display(options.name, plan.size) as display, _client(options, plan.queue, display) as client:
        target = Target(options.target, plan.id)  # before the queue is changed: a running copy may use it
        try:
            _forget_unless_resumed(options, client)
            others = [queue_of(copy) for copy in target.discard_others()]
            _delete_queues(client, others)
            copy(client, plan, target, options.lease, display)
            _delete_queues(client, others)  # again: a killed run's last request may have arrived since
            display.complete()
        finally:
            target.close()
    return 0


def _delete_queue_of(client: QueueClient, plan: Plan) -> None:
    """Delete the client's queue if this copy is in it."""
    begin = find_begin_mark(client)
    if begin is not None and begin.copy == plan.id:
        delete_queue(client)


def _produce(options: argparse.Namespace) -> int:
    plan = Plan.of(options.produce, None, options.batch)
    with Display(options.name, plan.size) as display, _client(options, QUEUE_OF_HALVES, display) as client:

        def sent(size: int) -> bool:
            display.moved(size)
            return True

        _forget_unless_resumed(options, client)
        try:
            produce(client, plan, stored_already(client, plan), sent)
        except Unresumable:
            _delete_queue_of(client, plan)  # the consumer sees that, and stops
            raise
        display.complete()
    return 0


def _consume(options: argparse.Namespace) -> int:
    check_target(options.consume)
    with Display(options.name, None) as display, _client(options, QUEUE_OF_HALVES, display) as client:
        _forget_unless_resumed(options, client)
        consume(client, options.consume, min(options.batch, MOST_LEASED), options.lease, display.moved, display.say)
    return 0


def _client(options: argparse.Namespace, queue: str, display: Display) -> QueueClient:
    """Return a client once the service answers. Raises Unreachable, Unavailable after `retry_for` seconds."""
    client = client_for(options, options.queue or queue)
    quick = min(QUICK, options.retry_for)
    try:
        client.healthy(retry_for=quick)
    except (Unreachable, Unavailable) as error:
        if options.retry_for > quick:
            display.say(f"{error}; retrying for {options.retry_for - quick:g} s")
            client.healthy(retry_for=options.retry_for - quick)
        else:
            raise
    return client


def _forget_unless_resumed(options: argparse.Namespace, client: QueueClient) -> None:
    if not options.resume:
        delete_queue(client)


def _delete_queues(client: QueueClient, queues: Iterable[str]) -> None:
    for queue in queues:
        delete_queue(client, queue)


def _stored(client: QueueClient, plan: Plan) -> int:
    """Return how many messages earlier runs sent. Delete the copy's own queue if its content does not fit."""
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


def _start(work: Callable[[], None]) -> Future[None]:
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
