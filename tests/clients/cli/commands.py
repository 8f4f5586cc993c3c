"""Run `queue-service` as a shell does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest

from clients import QueueClient
from clients.cli import main
from tests.support.live import REPOSITORY, LiveServer

NO_SERVICE = 69
Running = subprocess.Popen[bytes]


class Commands:
    """Commands for one queue of a service. Those on queues need its name as an argument."""

    def __init__(self, url: str, queue: str) -> None:
        self._environment = os.environ | {"QUEUE_URL": url, "PYTHONUNBUFFERED": ""}  # as in a user's shell
        self.queue = queue
        self.client = QueueClient(url, queue=queue)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.close()

    def run(self, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self._line(*arguments), cwd=REPOSITORY, env=self._environment, input=stdin, capture_output=True, timeout=60
        )

    def output(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Return what the command printed; it must succeed and report nothing."""
        done = self.run(*arguments, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode()

    def error(self, *arguments: str, stdin: bytes | None = None) -> tuple[int, str]:
        """Return the exit code and the only line on stderr."""
        done = self.run(*arguments, stdin=stdin)
        (line,) = done.stderr.decode().splitlines()
        return done.returncode, line

    @contextmanager
    def start(self, *arguments: str, **options: Any) -> Iterator[Running]:
        """Start the command and wait for its end; kill it if the test fails."""
        usual = {**dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE), "env": self._environment}
        with subprocess.Popen(self._line(*arguments), cwd=REPOSITORY, **{**usual, **options}) as running:
            try:
                yield running
            except BaseException:
                running.kill()
                raise

    def shell(self, line: str) -> str:
        """Return what a line of bash prints; $Q is the command and $QUEUE the queue."""
        environment = self._environment | {"Q": f"{sys.executable} -m clients", "QUEUE": self.queue}
        done = subprocess.run(
            ["bash", "-c", line], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.stderr == ""
        return done.stdout

    def _line(self, *arguments: str) -> list[str]:
        of_queue = arguments[0] in ("send", "receive", "work")
        options = ["--queue", self.queue] if of_queue else []
        return [sys.executable, "-m", "clients", arguments[0], *options, *arguments[1:]]


@pytest.fixture
def commands(server: LiveServer, queue: str) -> Iterator[Commands]:
    with Commands(server.url, queue) as commands:
        yield commands


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error in these arguments."""
    with pytest.raises(SystemExit, match="2"):
        main.main(arguments)
    return capsys.readouterr().err.splitlines()[-1]
