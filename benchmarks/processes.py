"""Processes: the CPU that a tree of them has used, and jobs that start at the same moment in several."""

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

READY_WITHIN = 120.0  # seconds: sixteen Pythons import a large library on few cores
DONE_WITHIN = 600.0  # seconds

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds: /proc counts in them

Start = Callable[[], None]  # returns when all jobs have called it
Job = tuple[Callable[..., Any], tuple[Any, ...]]  # a function that gets its Start, and its other arguments


class JobResult(NamedTuple):
    """The result of one process, when it worked (on a shared clock), and the CPU that it used meanwhile (s)."""

    result: Any
    began: float
    ended: float
    cpu: float


def cpu_of_tree(pid: int) -> float:
    """Return the seconds of CPU that a process, its children and its ended children have used. On Linux."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [
            child
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
    except FileNotFoundError:  # it ended meanwhile
        return 0.0
    return sum(map(int, fields[11:15])) * TICK + sum(cpu_of_tree(int(child)) for child in children)


def run_jobs(jobs: Sequence[Job]) -> list[JobResult]:
    """Run each job(start, *arguments) in its own process; its `start()` waits for all the others.

    Raises RuntimeError with the exception of a job.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(jobs), timeout=READY_WITHIN)
    pipes = [context.Pipe(duplex=False) for _ in jobs]
    workers = [
        context.Process(target=_run_job, args=(job, arguments, barrier, sender), daemon=True)
        for (job, arguments), (_, sender) in zip(jobs, pipes, strict=True)
    ]
    try:
        for worker, (_, sender) in zip(workers, pipes, strict=True):
            worker.start()
            sender.close()  # so that the receiver sees the end of the worker
        results = [_receive_result(receiver) for receiver, _ in pipes]
        if faults := [result for result in results if isinstance(result, str)]:
            # A job that fails before the start breaks the barrier for the others.
            raise RuntimeError(f"a client failed: {min(faults, key=lambda fault: 'BrokenBarrier' in fault)}")
    finally:
        for worker in workers:
            worker.join(5)
            worker.kill()
            worker.join()
    return [result for result in results if isinstance(result, JobResult)]


def _receive_result(receiver: Connection) -> JobResult | str:
    if not receiver.poll(READY_WITHIN + DONE_WITHIN):
        raise TimeoutError("a client did not end")
    try:
        result: JobResult | str = receiver.recv()
    except EOFError:
        return "it was killed"
    return result


def _run_job(job: Callable[..., Any], arguments: tuple[Any, ...], barrier: Barrier, sender: Connection) -> None:
    began = used = 0.0

    def start() -> None:
        nonlocal began, used
        barrier.wait()
        began, used = time.monotonic(), _cpu()

    try:
        result = job(start, *arguments)
        sender.send(JobResult(result, began, time.monotonic(), _cpu() - used))
    except BaseException:
        barrier.abort()
        sender.send(traceback.format_exc(limit=-3))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
