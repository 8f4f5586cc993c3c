"""The work of every queue: messages one at a time, in batches, and a file. Each run checks its result."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import Job, JobResult, Start, cpu_of_tree, run_jobs
from benchmarks.queues.peer import BATCH, OURS, Server, batches, load

WARM_UP = 5  # messages of each client
SIZE = 60  # characters of a text


class Run(NamedTuple):
    """A run of so many messages in `seconds`; CPU (s) of the clients and of the server."""

    messages: int
    seconds: float
    client_cpu: float
    server_cpu: float

    @property
    def rate(self) -> float:
        return self.messages / self.seconds


def one_at_a_time(name: str, server: Server, clients: int, seconds: float) -> Run:
    """Run each client in its own process: send a message, receive one, ack it, and repeat."""
    jobs: list[Job] = [(_singly, (name, server.address, number, seconds)) for number in range(clients)]
    done, cpu = _timed(server, jobs)
    sent = [text for one in done for text in one.result[0]]
    received = [text for one in done for text in one.result[1]]
    _check(name, sent, received, ordered=False)
    return _run(done, len(sent) - WARM_UP * clients, cpu)


def batched(name: str, server: Server, count: int) -> Run:
    """Run one process that sends and one that receives and acks, both in the largest suitable batches."""
    jobs: list[Job] = [(_send_all, (name, server.address, count)), (_take_all, (name, server.address, count))]
    done, cpu = _timed(server, jobs)
    _check(name, _texts(count), done[1].result, ordered=load(name).ordered)
    return _run(done, count, cpu)


def copied(name: str, server: Server, source: Path, target: Path) -> Run:
    """Copy a file's lines as `batched` does; sync each batch to disk before its ack, and compare the copy."""
    jobs: list[Job] = [
        (_send_file, (name, server.address, source)),
        (_take_file, (name, server.address, source, target)),
    ]
    done, cpu = _timed(server, jobs)
    if load(name).ordered and target.read_bytes() != source.read_bytes():
        raise RuntimeError(f"{name}: the copy differs")
    count = source.read_bytes().count(b"\n")
    target.unlink()
    return _run(done, count, cpu)


def _timed(server: Server, jobs: Sequence[Job]) -> tuple[list[JobResult], float]:
    before = 0.0 if server.pid is None else cpu_of_tree(server.pid)
    done = run_jobs(jobs)
    return done, 0.0 if server.pid is None else cpu_of_tree(server.pid) - before


def _run(done: list[JobResult], count: int, server_cpu: float) -> Run:
    seconds = max(one.ended for one in done) - min(one.began for one in done)
    return Run(count, seconds, sum(one.cpu for one in done), server_cpu)


def _check(name: str, sent: list[str], taken: list[str], *, ordered: bool) -> None:
    if taken != sent if ordered else sorted(taken) != sorted(sent):
        lost, more = len(set(sent) - set(taken)), len(taken) - len(set(taken))
        raise RuntimeError(f"{name}: {len(sent)} sent, {len(taken)} received; {lost} lost, {more} twice, or misordered")


def _singly(start: Start, name: str, address: str, number: int, seconds: float) -> tuple[list[str], list[str]]:
    client = load(name).connect(address)
    sent: list[str] = []
    received: list[str] = []

    def pass_one() -> None:
        text = f"{number}-{len(sent)}".ljust(SIZE, ".")
        client.send(text)
        sent.append(text)
        received.append(client.take())

    for _ in range(WARM_UP):
        pass_one()
    start()
    end = time.monotonic() + seconds
    pass_one()
    while time.monotonic() < end:
        pass_one()
    client.close()
    return sent, received


def _send_all(start: Start, name: str, address: str, count: int) -> None:
    client = load(name).connect(address)
    texts = _texts(count)
    start()
    client.send_all(batches(texts, BATCH))
    client.close()


def _take_all(start: Start, name: str, address: str, count: int) -> list[str]:
    client = load(name).connect(address)
    received: list[str] = []
    start()
    for texts in client.take_all(count):
        received += texts
    client.close()
    return received


def _send_file(start: Start, name: str, address: str, source: Path) -> None:
    if name == OURS:
        return _our_half(start, address, "--produce", source)
    client = load(name).connect(address)
    start()
    client.send_all(_lines(source))
    client.close()
    return None


def _take_file(start: Start, name: str, address: str, source: Path, target: Path) -> None:
    if name == OURS:
        return _our_half(start, address, "--consume", target)
    client = load(name).connect(address)
    count = source.read_bytes().count(b"\n")
    start()
    with target.open("wb") as file:
        for texts in client.take_all(count):
            file.write("".join(f"{text}\n" for text in texts).encode())
            file.flush()
            os.fsync(file.fileno())
    client.close()
    return None


def _our_half(start: Start, address: str, half: str, path: Path) -> None:
    """Run half of our own command. It does more: it resumes after a kill, accepts any bytes and checks a SHA-256."""
    from clients import copy_file

    start()
    if copy_file.main([half, str(path), "--url", address]) != 0:
        raise RuntimeError(f"copy_file {half} failed")


def _lines(source: Path) -> Iterator[list[str]]:
    with source.open(encoding="utf-8", newline="\n") as file:
        batch = []
        for line in file:
            batch.append(line[:-1])
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch


def _texts(count: int) -> list[str]:
    return [str(number).rjust(SIZE, ".") for number in range(count)]
