"""A real service for a benchmark: gunicorn with the repository's settings, in a private directory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from settings import Settings

REPOSITORY = Path(__file__).resolve().parent.parent
STARTS_WITHIN = 20.0  # seconds
STOPS_WITHIN = 40.0  # seconds: a little more than gunicorn's graceful timeout


class Service(NamedTuple):
    """A running service; `pid` is its master's."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def workers(self) -> list[int]:
        """Return the pids of the workers. On Linux."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]


@contextmanager
def service(
    app: str = "handler:app", database: Path | str | None = None, tree: Path = REPOSITORY, workers: int | None = None
) -> Iterator[Service]:
    """One on a free port, with a database of its own or the one given; it is stopped when the block ends.

    `database`: SQLite's file, or the URL of a database. `tree`: the repository whose service it is. `workers`: their
    number, if not that of the settings.
    """
    with tempfile.TemporaryDirectory(prefix="queue-bench-") as folder, socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        probe.close()
        log = Path(folder, "log")
        workers = workers or Settings.from_env().workers
        process = _start(app, port, database or Path(folder, "queue.db"), log, tree, workers)
        try:
            _await_answer(f"http://127.0.0.1:{port}/ready", process, log)
            one = Service(port, process.pid)
            _await_workers(one, workers, log)
            yield one
        finally:
            _stop(process)


def settings() -> str:
    """Describe the settings that affect the figures."""
    return (
        f"settings  {Settings.from_env().workers} workers, a loop and {Settings.from_env().threads} threads in each; "
        "SQLite WAL, synchronous=FULL: every reply after its fsync"
    )


def _start(app: str, port: int, database: Path | str, log: Path, tree: Path, workers: int) -> subprocess.Popen[bytes]:
    url = f"sqlite:///{database}" if isinstance(database, Path) else database
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "gunicorn", app],
            cwd=tree,
            env=os.environ | {"PORT": str(port), "QUEUE_DATABASE_URL": url, "WEB_CONCURRENCY": str(workers)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(url, timeout=5):
                return
        except OSError:  # refused, or an HTTP error: not ready
            time.sleep(0.02)
    raise RuntimeError(f"the service did not start:\n{log.read_text(errors='replace')}")


def _await_workers(one: Service, workers: int, log: Path) -> None:
    """Wait for all workers, because the first accepts requests before the last is forked."""
    deadline = time.monotonic() + STARTS_WITHIN
    while len(one.workers) < workers:
        if time.monotonic() > deadline:
            raise RuntimeError(f"some workers did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOPS_WITHIN)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
