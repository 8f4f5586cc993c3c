"""Copy a file, line by line, through a queue: the command `queue-service copy`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress

from .cli.command_line import (
    LONGEST_LEASE,
    add_queue_option,
    add_service_options,
    client_for,
    run,
    stop_at_signal,
    within,
)
from .client import QueueClient
from .copying.consumer import consume
from .copying.display import Display
from .copying.plan import CopyError, Plan, Unresumable, clear_away, delete_queue, find_begin_mark, queue_of
from .copying.source import Flow, Producing, Stop, produce, stored_already
from .copying.target import Target, check_target, digest_of
from .errors import QueueError

BATCH = 1000  # messages
MOST_LEASED = 1000  # messages in one read
QUEUE_OF_HALVES = "copy"
LEASE = 10.0  # seconds: long for one batch, short for a restarted copy that waits for leased lines
ENDS_WITHIN = 2.0  # seconds for the last request of a producer whose copy failed

COPY = """Copy a file, line by line, through a queue.

    %(prog)s SRC DST           both halves at once, through a queue of its own
    %(prog)s --produce SRC     one half each, in two processes or on two machines,
    %(prog)s --consume DST     in any order, through the queue "copy"

The copy is identical to the byte, or the exit code is not 0 and DST is unchanged. To continue an interrupted copy, run
the same command again. SRC may be a pipe, or - for stdin; to copy it again after an interruption, begin again. A new
DST gets the mode of SRC. Of a file that grows, the bytes that were there at the beginning are copied.
"""


def main(arguments: list[str] | None = None, prog: str = "python -m clients.copy_file") -> int:
    """Run the command and return its exit code: 0 only if all was copied."""
    parser = argparse.ArgumentParser(prog=prog, description=COPY, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_copy(parser)
    options = parser.parse_args(arguments)
    options.name = prog.rpartition(".")[2]
    return run(options)


def copy(
    client: QueueClient,
    plan: Plan,
    target: Target,
    lease: float,
    display: Display,
    stop: Stop | None = None,
) -> None:
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
    producing = Producing(lambda: produce(client, plan, stored, flow.sent, stop))

    def written(size: int) -> None:
        display.moved(size)
        flow.written(size)

    try:
        consume(client, target, min(plan.batch, MOST_LEASED), lease, written, display.say, producing)
    except BaseException as error:
        if plan.size is None or isinstance(error, Unresumable):
            flow.stop()
            producing.wait(ENDS_WITHIN if plan.size is None else None)
            with suppress(QueueError):  # the next run to this target finds the .part file, and deletes the queue
                client.healthy()  # without a service, do not wait
                _delete_queue_of(client, plan)
                target.discard()
        raise
    finally:
        flow.stop()


def _copy(options: argparse.Namespace) -> int:
    plan = _plan(options, options.source, options.target)
    if plan.source == plan.target:
        raise CopyError(f"{options.source} and {options.target} are the same file")
    with (
        Display(options.name, plan.size) as display,
        client_for(options, options.queue or plan.queue) as client,
        _stop(options) as stop,
    ):
        target = Target(options.target, plan.id)  # before the queue is changed: a running copy may use it
        try:
            _forget_unless_resumed(options, client)
            others = [queue_of(copy) for copy in target.discard_others()]
            _delete_queues(client, others)
            copy(client, plan, target, options.lease, display, stop)
            _delete_queues(client, others)  # again: a killed run's last request may have arrived since
            display.complete()
        finally:
            target.close()
    return 0


def _plan(options: argparse.Namespace, source: str, target: str | None = None) -> Plan:
    plan = Plan.of(source, target, options.batch, options.follow)
    if plan.size is None:
        options.if_interrupted = "interrupted; nothing was copied"
    return plan


def _stop(options: argparse.Namespace) -> AbstractContextManager[Stop | None]:
    return stop_at_signal() if options.follow else nullcontext()


def _delete_queue_of(client: QueueClient, plan: Plan) -> None:
    """Delete the client's queue if this copy is in it."""
    begin = find_begin_mark(client)
    if begin is not None and begin.copy == plan.id:
        delete_queue(client)


def _produce(options: argparse.Namespace) -> int:
    plan = _plan(options, options.produce)
    with (
        Display(options.name, plan.size) as display,
        client_for(options, options.queue or QUEUE_OF_HALVES) as client,
        _stop(options) as stop,
    ):

        def sent(size: int) -> bool:
            display.moved(size)
            return True

        _forget_unless_resumed(options, client)
        try:
            produce(client, plan, stored_already(client, plan), sent, stop)
        except BaseException as error:
            if plan.size is None or isinstance(error, Unresumable):
                with suppress(QueueError, CopyError):
                    _delete_queue_of(client, plan)  # the consumer sees that, and stops
            raise
        display.complete()
    return 0


def _consume(options: argparse.Namespace) -> int:
    check_target(options.consume)
    with (
        Display(options.name, None) as display,
        client_for(options, options.queue or QUEUE_OF_HALVES) as client,
    ):
        _forget_unless_resumed(options, client)
        consume(client, options.consume, min(options.batch, MOST_LEASED), options.lease, display.moved, display.say)
    return 0


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
        return plan.size is not None and target.is_in_place(plan.size, digest_of(file.fileno()))


def add_copy(parser: argparse.ArgumentParser) -> None:
    """Add the options, and `work`, which runs the command with them and `name`."""
    parser.add_argument("source", metavar="SRC", nargs="?", help="file to copy")
    parser.add_argument("target", metavar="DST", nargs="?", help="target file; replaced at the end if it exists")
    parser.add_argument("--produce", metavar="SRC", help="only send the file's lines")
    parser.add_argument("--consume", metavar="DST", help="only write the lines that arrive")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="also copy what is appended to SRC, until SIGINT or SIGTERM completes the copy (default: off)",
    )
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
    add_queue_option(parser, None, f"one of the copy's own; {QUEUE_OF_HALVES} for --produce and --consume")
    add_service_options(parser)

    def work(options: argparse.Namespace) -> int:
        files, halves = (options.source, options.target), (options.produce, options.consume)
        if (files.count(None), halves.count(None)) not in ((0, 2), (2, 1)):
            parser.error("give SRC and DST, or --produce SRC, or --consume DST")
        if options.follow and options.consume:
            parser.error("--follow is for the half that reads SRC")
        same = "the same command" if options.resume else "the same command without --no-resume"
        options.if_interrupted = f"interrupted; run {same} to continue"
        command = _copy if options.source else _produce if options.produce else _consume
        return command(options)

    parser.set_defaults(work=work)


if __name__ == "__main__":
    sys.exit(main())
