"""A service for tests; docs/python.md shows a pytest fixture of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from .cli.service import service_folder
from .client import QueueClient

STARTS_WITHIN = 20.0  # seconds
STOPS_WITHIN = 40.0  # seconds: a little over the graceful timeout


@contextmanager
def running_service() -> Iterator[str]:
    """Run a service on a free port, with an empty database in a temporary directory. Yield its URL, and stop it.

    Raises RuntimeError if the extra `server` is not installed, or, with the service's log, if it does not start in
    20 s. The settings of this process's environment do not apply.
    """
    folder = service_folder()
    if folder is None or find_spec("gunicorn") is None:
        raise RuntimeError("only the client is installed; install the package with the extra 'server'")
    with TemporaryDirectory(prefix="queue-service-") as directory, (Path(directory) / "log").open("wb") as log:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QUEUE_")}
        environment |= {
            "PORT": "0",
            "QUEUE_DATABASE_URL": f"sqlite:///{directory}/queue.db",
            "WEB_CONCURRENCY": "1",
            "PYTHONUNBUFFERED": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "handler:app"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the tests, which still use the service when they end
        )
        try:
            yield _url(process, Path(log.name))
        finally:
            _stop(process)


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the URL that the service logs, once it answers."""
    until = time.monotonic() + STARTS_WITHIN
    while (found := re.search(r" at (http://\S+) ", log.read_text())) is None:
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the service did not start:\n{log.read_text()}")
        time.sleep(0.02)
    with QueueClient(found[1], token="") as client:
        client.healthy(retry_for=STARTS_WITHIN)
    return found[1]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOPS_WITHIN)
    finally:
        with suppress(ProcessLookupError):  # all of its processes have ended
            os.killpg(process.pid, signal.SIGKILL)
