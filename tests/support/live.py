"""A real service for tests: gunicorn with the repository's own configuration, on a free port, in a private directory.

LiveServer can be stopped, killed and started again on the same port and database. FaultProxy, between it and a client,
loses replies.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

REPOSITORY = Path(__file__).resolve().parents[2]
STARTS_WITHIN = 20.0  # seconds
STOPS_WITHIN = 40.0  # seconds: a little over the graceful timeout


class LiveServer:
    """A service at `server.url`, which `with` starts and stops. `environment` extends this process's own."""

    def __init__(
        self,
        environment: dict[str, str] | None = None,
        *,
        command: Sequence[str] = (sys.executable, "-m", "gunicorn", "handler:app"),
        working_directory: Path = REPOSITORY,
    ) -> None:
        self._command = command
        self._working_directory = working_directory
        self.directory = Path(tempfile.mkdtemp(prefix="queue-test-"))
        self.database = self.directory / "queue.db"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = os.environ | {
            "PORT": str(self.port),
            "QUEUE_DATABASE_URL": f"sqlite:///{self.database}",
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return the master's pid; its process group includes the workers."""
        assert self._process is not None, "not running"
        return self._process.pid

    @property
    def workers(self) -> list[int]:
        """Return the pids of the current workers, which may be fewer or more than configured."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def start(self) -> None:
        """Start the service and wait until it answers. Raises RuntimeError, with its log, after 20 s."""
        with self._log_file() as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._working_directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + STARTS_WITHIN
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the service did not start:\n{self.log()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the service by SIGTERM and wait. Raises RuntimeError, with its log, after 40 s."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the service did not stop:\n{self.log()}") from None
        self._process = None

    def kill(self) -> None:
        """Kill master and workers at once, like SIGKILL or the OOM killer."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # all had ended already
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Kill the service if it runs, and start it on the same port and database."""
        self.kill()
        self.start()

    def connections(self) -> int:
        """Return how many connections the service has not closed (Linux: proc_net_tcp)."""
        established, close_wait = "01", "08"
        return sum(at[3] in (established, close_wait) for at in _sockets_of(self.port))

    def await_unconnected(self, others: int = 0) -> None:
        """Wait until only `others` are connected, so requests of killed clients are done. Raises AssertionError."""
        await_true(lambda: self.connections() <= others)

    def await_read(self, *clients: socket.socket) -> None:
        """Wait until the service has read all that these clients sent. Raises AssertionError."""
        ports = {client.getsockname()[1] for client in clients}

        def is_read() -> bool:
            unread = {int(at[2][-4:], 16): at[4][-8:] for at in _sockets_of(self.port)}
            return all(unread.get(port) == "00000000" for port in ports)

        await_true(is_read)

    def log(self) -> str:
        """Return the end of the log of its processes."""
        return (self.directory / "log").read_text(errors="replace")[-10_000:]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            shutil.rmtree(self.directory)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            print(self.log(), file=sys.stderr)
        try:
            self.stop()
        finally:
            shutil.rmtree(self.directory)

    def _log_file(self) -> IO[bytes]:
        return (self.directory / "log").open("ab")

    def _is_healthy(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: queue\r\nConnection: close\r\n\r\n")
                status = connection.recv(1_000)[9:12]
        except OSError:
            return False
        if status not in (b"", b"200"):
            raise RuntimeError(f"the service answers {status.decode()}:\n{self.log()}")
        return status == b"200"


class FaultProxy:
    """Forwards requests to `upstream` and their replies back, except that it loses the next `losing` replies.

    The service has done a request whose reply is lost. The client's connection is reset, or gets `instead`. With
    `loses_each` the first reply to each request is lost, and the reply to its retry is not. Each reply is delayed by
    `delay` seconds. A request that `hangs` is not forwarded, and its connection is closed after that many seconds.
    With `tls` its clients speak TLS.
    """

    def __init__(self, upstream: LiveServer, tls: ssl.SSLContext | None = None) -> None:
        self.losing = 0
        self.loses_each = False
        self.instead: bytes | None = None
        self.delay = 0.0
        self.hangs: Callable[[bytes], float | None] = lambda request: None
        self.requests = 0
        self._lost: set[bytes] = set()
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._tls = tls
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # ends the waiting accept
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self._tls is not None:
            client = self._tls.wrap_socket(client, server_side=True)
        with client, client.makefile("rb") as requests:
            while request := _read_message(requests):
                self.requests += 1
                if (hangs := self.hangs(request)) is not None:
                    time.sleep(hangs)
                    return
                with socket.create_connection(("127.0.0.1", self._upstream.port)) as server:
                    server.sendall(request)
                    with server.makefile("rb") as replies:
                        reply = _read_message(replies)
                time.sleep(self.delay)
                if not self._loses(request):
                    client.sendall(reply)
                elif self.instead is not None:
                    client.sendall(self.instead)
                else:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, not FIN
                    return

    def _loses(self, request: bytes) -> bool:
        if self.loses_each and request not in self._lost:
            self._lost.add(request)
            return True
        if self.losing > 0:
            self.losing -= 1
            return True
        return False


def await_true(happened: Callable[[], bool]) -> None:
    """Wait until it happened. Raises AssertionError after 20 s."""
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline, "it did not happen within 20 s"
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _read_message(stream: IO[bytes]) -> bytes:
    """Return one HTTP request or reply with its body; empty at the end of the stream."""
    head, length = b"", 0
    while line := stream.readline():
        head += line
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
        if line == b"\r\n":
            return head + stream.read(length)
    return b""


def _sockets_of(port: int) -> list[list[str]]:
    """Return the fields of the service's side of each connection."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [at for at in sockets if at[1].endswith(f":{port:04X}")]
