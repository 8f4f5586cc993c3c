"""A Redis server that fsyncs its log before every reply, for the two peers that use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.queues.peer import Server, program, versions
from benchmarks.queues.process import free_port, output, running


def version() -> str:
    words = output(_program(), "--version").split()
    return f"Redis {next(word[2:] for word in words if word.startswith('v='))}, {versions('redis', 'hiredis')}"


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    port = free_port()
    settings = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "daemonize": "no",
    }
    command = [_program(), *(word for name, value in settings.items() for word in (f"--{name}", value))]
    with running(command, folder, port) as pid:
        yield Server(str(port), pid)


def _program() -> str:
    return program("redis-server", "redis-server", "/usr/bin", "/usr/local/bin")
