"""What processes cost: the CPU a tree of them has used, and work done by several that start at the same moment."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

READY_WITHIN = 120.0  # seconds: sixteen Pythons that import a large library on few cores
DONE_WITHIN = 600.0  # seconds

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds: /proc counts in them

Start = Callable[[], None]  # returns at the moment when all have called it
Job = tuple[Callable[..., Any], tuple[Any, ...]]  # a function, called with its Start and these


class Done(NamedTuple):
    """What one process brought back, when it worked (on a clock all share), and the CPU it used meanwhile (s)."""

    result: Any
    began: float
    ended: float
    cpu: float


def cpu_of_tree(pid: int) -> float:
    """Seconds of CPU used so far by a process, its children that live, and those it has waited for. On Linux."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [
            child
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
    except FileNotFoundError:  # it has ended meanwhile
        return 0.0
    return sum(map(int, fields[11:15])) * TICK + sum(cpu_of_tree(int(child)) for child in children)


def together(jobs: Sequence[Job]) -> list[Done]:
    """Runs each job(start, *arguments) in a process of its own; `start()` in it waits for all the others.

    Raises RuntimeError with what any of them raised.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(jobs), timeout=READY_WITHIN)
    pipes = [context.Pipe(duplex=False) for _ in jobs]
    workers = [
        context.Process(target=_work, args=(job, arguments, barrier, sender), daemon=True)
        for (job, arguments), (_, sender) in zip(jobs, pipes, strict=True)
    ]
    try:
        for worker, (_, sender) in zip(workers, pipes, strict=True):
            worker.start()
            sender.close()  # so that its end is seen here
        found = [_found(receiver) for receiver, _ in pipes]
        if faults := [one for one in found if isinstance(one, str)]:
            # One that failed before the start breaks the barrier for the others.
            raise RuntimeError(f"a client failed: {min(faults, key=lambda fault: 'BrokenBarrier' in fault)}")
    finally:
        for worker in workers:
            worker.join(5)
            worker.kill()
            worker.join()
    return [one for one in found if isinstance(one, Done)]


def _found(receiver: Connection) -> Done | str:
    if not receiver.poll(READY_WITHIN + DONE_WITHIN):
        raise TimeoutError("a client did not end")
    try:
        found: Done | str = receiver.recv()
    except EOFError:
        return "it was killed"
    return found


def _work(job: Callable[..., Any], arguments: tuple[Any, ...], barrier: Barrier, sender: Connection) -> None:
    began = used = 0.0

    def start() -> None:
        nonlocal began, used
        barrier.wait()
        began, used = time.monotonic(), _cpu()

    try:
        result = job(start, *arguments)
        sender.send(Done(result, began, time.monotonic(), _cpu() - used))
    except BaseException:
        barrier.abort()
        sender.send(traceback.format_exc(limit=-3))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
