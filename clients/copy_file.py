"""Copy a file, line by line, through a queue.

    python -m clients.copy_file SRC DST           both halves at once, through a queue of its own
    python -m clients.copy_file --produce SRC     the halves apart: in two processes, on two machines,
    python -m clients.copy_file --consume DST     in any order, through the queue "copy"

The copy is identical to the byte, whatever is in the file, or the exit code is not 0 and DST is untouched. Killed at
any point and run again with the same arguments it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import NoReturn

from tqdm import tqdm

from clients.client import QueueClient
from clients.command_line import add_service_options, client_for, run
from clients.copy_consumer import consume
from clients.copy_plan import CopyError, Plan, delete_queue, queue_of
from clients.copy_source import Flow, produce, stored_already
from clients.copy_target import Target, digest_of

BATCH = 1000  # messages
MOST_LEASED = 1000  # messages in one read
QUEUE_OF_HALVES = "copy"
LEASE = 10.0  # seconds: long for one batch, short for who runs a killed copy again and waits for what it had leased
QUICK = 2.0  # seconds for a service that should be there already


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 only if all was done."""
    asked = _parser().parse_args(arguments)
    if bool(asked.produce) + bool(asked.consume) + (asked.source is not None and asked.target is not None) != 1:
        _parser().error("give SRC and DST, or --produce SRC, or --consume DST")
    if not 1 <= asked.batch <= 10_000:
        _parser().error("--batch is 1 to 10000")
    command = _produce if asked.produce else _consume if asked.consume else _copy
    return run("copy_file", lambda: command(asked))


def copy(client: QueueClient, plan: Plan, target: Target, lease: float, progress: Callable[[int], object]) -> None:
    """The target is a copy of the source. Raises CopyError, QueueError, OSError, and then it is untouched."""
    stored = _stored(client, plan)
    if stored and target.is_new:
        # No .part file: a run was killed right after its rename, or somebody removed the file.
        if _is_in_place(plan, target):
            delete_queue(client)
            target.discard()
            return
        delete_queue(client)
        stored = 0
    if not stored:
        target.start_afresh()
    flow = Flow()
    producing = _in_thread(lambda: produce(client, plan, stored, flow.sent))

    def written(size: int) -> None:
        progress(size)
        flow.written(size)

    try:
        consume(client, target, min(plan.batch, MOST_LEASED), lease, written, producing)
    finally:
        flow.stop()


def _copy(asked: argparse.Namespace) -> int:
    plan = Plan.of(asked.source, asked.target, asked.batch)
    if plan.source == plan.target:
        raise CopyError(f"{asked.source} and {asked.target} are the same file")
    with _client(asked, plan.queue) as client:
        target = Target(asked.target, plan.id)
        try:
            target.discard_others(lambda other: delete_queue(client, queue_of(other)))
            with _progress(plan.size) as bar:
                copy(client, plan, target, asked.lease, bar.update)
                bar.update(plan.size - bar.n)
        finally:
            target.close()
    return 0


def _produce(asked: argparse.Namespace) -> int:
    plan = Plan.of(asked.produce, None, asked.batch)
    with _client(asked, QUEUE_OF_HALVES) as client, _progress(plan.size) as bar:

        def sent(size: int) -> bool:
            bar.update(size)
            return True

        produce(client, plan, stored_already(client, plan), sent)
        bar.update(plan.size - bar.n)
    return 0


def _consume(asked: argparse.Namespace) -> int:
    with _client(asked, QUEUE_OF_HALVES) as client, _progress(None) as bar:
        consume(client, asked.consume, min(asked.batch, MOST_LEASED), asked.lease, bar.update)
    return 0


def _client(asked: argparse.Namespace, queue: str) -> QueueClient:
    client = client_for(asked, asked.queue or queue)
    client.healthy(retry_for=min(QUICK, asked.patience))
    if not asked.resume:
        delete_queue(client)
    return client


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


def _progress(size: int | None) -> tqdm[NoReturn]:
    """Silent when stderr is not a terminal."""
    return tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, disable=None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clients.copy_file",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", nargs="?", help="file to copy")
    parser.add_argument("target", metavar="DST", nargs="?", help="where to; an existing file is replaced at the end")
    parser.add_argument("--produce", metavar="SRC", help="only send the file's lines")
    parser.add_argument("--consume", metavar="DST", help="only write the lines that come")
    parser.add_argument("--batch", type=int, default=BATCH, help="messages in one request (default: %(default)s)")
    parser.add_argument(
        "--lease",
        type=float,
        default=LEASE,
        metavar="S",
        help="how long what a killed run was writing stays away from the next one (default: %(default)g)",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with an unfinished copy of the same arguments; --no-resume deletes the queue first",
    )
    add_service_options(parser, None)
    return parser


if __name__ == "__main__":
    sys.exit(main())
