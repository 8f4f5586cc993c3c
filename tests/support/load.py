"""Load for fault tests: writers and readers in separate processes; tests/support/checker.py checks their histories.

They use HTTP without the client and repeat no request, so that unknown outcomes are recorded exactly. A reader without
leases gives each read an Idempotency-Key and repeats it until it is answered, since otherwise a lost reply loses its
message, as the API allows. A `keyed` writer does the same.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
import uuid
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.support.checker import History, Outcome, Verdict, judge, read_histories
from tests.support.live import await_true

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # seconds for one reply, and for all processes to finish


class Reply(NamedTuple):
    outcome: Outcome
    document: Any = None
    status: int = 0  # 0: there was no answer
    headers: Message = Message()


class Connection:
    """A kept-alive connection that never repeats a request: without an answer its outcome is unknown."""

    def __init__(self, port: int) -> None:
        self._http = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def open(self) -> bool:
        """Connect if necessary, without a request; return whether there is a connection."""
        if self._http.sock is None:
            try:
                self._http.connect()
            except OSError:
                time.sleep(0.02)
        return self._http.sock is not None

    def ask(
        self, method: str, path: str, body: object = None, key: str | None = None, target: str | None = None
    ) -> Reply:
        """Send a request; `target` names an action of SQS."""
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
        if target is not None:
            headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": target}
        try:
            self._http.request(method, path, None if body is None else json.dumps(body), headers)
            reply = self._http.getresponse()
            content = reply.read()
        except (OSError, HTTPException):
            self.close()
            return Reply(Outcome.UNKNOWN)
        document: Any = json.loads(content) if content else None
        if reply.status in (200, 204):
            return Reply(Outcome.ACKNOWLEDGED, document, reply.status, reply.headers)
        refused = reply.status < 500 or document["code"] in ("busy", "disk_full")  # these mean that nothing was done
        return Reply(Outcome.REFUSED if refused else Outcome.UNKNOWN, document, reply.status, reply.headers)

    def close(self) -> None:
        self._http.close()


@dataclass
class Actor:
    """A writer or a reader of one queue, until `stopping` returns True."""

    port: int
    queue: str
    history: History
    batch: int = 1
    lease: float | None = None  # readers: seconds, None to remove at once; writers: not used
    keyed: bool = False  # writers: repeat a write with its Idempotency-Key until it is answered
    before: Sequence[str] = ()  # readers: queues whose messages will move to this one
    stopping: Callable[[], bool] = lambda: False
    connection: Connection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = Connection(self.port)

    def write(self) -> None:
        """Write batch after batch until `stopping`."""
        number = 0
        while self._connected() and not self.stopping():
            texts = [f"{self.history.path.stem}-{number + n}" for n in range(self.batch)]
            number += self.batch
            documents = [{"text": text} for text in texts]
            body = documents[0] if self.batch == 1 else documents
            self.history.asking("write", texts)
            reply = self._ask("POST", f"/queues/{self.queue}/messages", body, repeat=self.keyed)
            ids: list[str] = []
            if reply.outcome is Outcome.ACKNOWLEDGED:
                ids = reply.document["ids"] if "ids" in reply.document else [reply.document["id"]]
            self.history.answered(reply.outcome, ids)

    def read(self) -> None:
        """Read, and with a lease ack, until `stopping` and no message is left."""
        read = self._lease if self.lease is not None else self._take
        while not (self.stopping() and self._is_drained()):
            if self._connected():
                read()

    def close(self) -> None:
        self.connection.close()
        self.history.close()

    def _take(self) -> None:
        self.history.asking("read")
        reply = self._ask("GET", f"/queues/{self.queue}/messages?wait=0.2", repeat=True)
        messages = [{"id": reply.headers["Message-Id"], "text": reply.document["text"]}] if reply.document else []
        self.history.answered(reply.outcome, messages)

    def _lease(self) -> None:
        self.history.asking("read", lease=self.lease)
        path = f"/queues/{self.queue}/messages?wait=0.2&lease={self.lease:g}&limit={self.batch}"
        reply = self._ask("GET", path)
        read = reply.outcome is Outcome.ACKNOWLEDGED and reply.document
        self.history.answered(reply.outcome, read or [])
        if read:
            receipts = [message["receipt"] for message in read]
            self.history.asking("ack", receipts)
            reply = self._ask("POST", f"/queues/{self.queue}/messages/ack", {"receipts": receipts})
            acked = reply.outcome is Outcome.ACKNOWLEDGED
            self.history.answered(reply.outcome, reply.document["stale"] + reply.document["missing"] if acked else [])

    def _ask(self, method: str, path: str, body: object = None, repeat: bool = False) -> Reply:
        key = uuid.uuid4().hex if repeat else None
        reply = self.connection.ask(method, path, body, key)
        while repeat and reply.outcome is not Outcome.ACKNOWLEDGED:
            time.sleep(0.02)
            self._connected()
            reply = self.connection.ask(method, path, body, key)
        return reply

    def _connected(self) -> bool:
        """Wait for the service, without limit, until `stopping`."""
        while not self.connection.open():
            if self.stopping():
                return False
        return True

    def _is_drained(self) -> bool:
        reply = self.connection.ask("GET", "/queues") if self._connected() else Reply(Outcome.UNKNOWN)
        if reply.outcome is not Outcome.ACKNOWLEDGED:
            return False
        mine = [one["stats"] for one in reply.document["queues"] if one["queue"] in (self.queue, *self.before)]
        return not any(stats[state] for stats in mine for state in ("ready", "leased", "delayed", "blocked"))


class Load:
    """Writers and readers of one queue. `with Load(…) as load:`, then faults, then `load.finish()`."""

    def __init__(self, port: int, directory: Path, queue: str = "load") -> None:
        self.port = port
        self.directory = directory
        self.queue = queue
        self._running: dict[str, list[subprocess.Popen[bytes]]] = {"writer": [], "reader": []}
        directory.mkdir(exist_ok=True)

    def write(self, processes: int = 1, *, batch: int = 1, keyed: bool = False) -> Self:
        return self._start("writer", processes, f"--batch={batch}", *["--keyed"] * keyed)

    def read(
        self, processes: int = 1, *, lease: float | None = None, batch: int = 1, before: Sequence[str] = ()
    ) -> Self:
        options = [f"--before={name}" for name in before] + ([] if lease is None else [f"--lease={lease}"])
        return self._start("reader", processes, f"--batch={batch}", *options)

    def await_progress(self) -> None:
        """Wait until each process has made an acknowledged request since this call. Raises AssertionError."""
        before = {path: path.stat().st_size for path in self.directory.glob("*.jsonl")}

        def goes_on(path: Path) -> bool:
            with path.open("rb") as history:
                history.seek(before[path])
                return history.read().count(b'"acknowledged"') > 1  # the first answer may be to an earlier request

        await_true(lambda: all(map(goes_on, before)))

    def finish_writing(self) -> None:
        """Stop the writers and wait for their last answers."""
        self._finish("writer")

    def finish(self, written_as: Callable[[str], str] = lambda text: text) -> Verdict:
        """Stop the writers, let readers (at least one) empty the queue, and return the verdict."""
        self._finish("writer")
        if not self._running["reader"]:
            self.read()
        self._finish("reader")
        return judge(read_histories(self.directory), written_as)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._running["writer"] + self._running["reader"]:
            process.kill()
            process.communicate()

    def _start(self, role: str, processes: int, *options: str) -> Self:
        for _ in range(processes):
            path = self.directory / f"{role}-{len(list(self.directory.glob('*.jsonl')))}.jsonl"
            path.touch()
            command = [
                sys.executable,
                "-m",
                "tests.support.load",
                role,
                str(self.port),
                self.queue,
                str(path),
                *options,
            ]
            self._running[role].append(subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE))
        return self

    def _finish(self, role: str) -> None:
        for process in self._running[role]:
            assert process.stdin is not None
            process.stdin.close()
        deadline = time.monotonic() + PATIENCE
        for process in self._running[role]:
            status = process.wait(max(0.0, deadline - time.monotonic()))
            assert status == 0, f"a {role} ended with status {status}"
        self._running[role].clear()


def main() -> None:
    parser = ArgumentParser(description="One writer or reader of a Load; it finishes at the end of its input.")
    parser.add_argument("role", choices=["writer", "reader"])
    parser.add_argument("port", type=int)
    parser.add_argument("queue")
    parser.add_argument("history", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--lease", type=float)
    parser.add_argument("--keyed", action="store_true")
    parser.add_argument("--before", action="append", default=[])
    options = vars(parser.parse_args())
    role, history = options.pop("role"), History(options.pop("history"))
    actor = Actor(history=history, stopping=lambda: bool(select.select([sys.stdin], [], [], 0)[0]), **options)
    if role == "writer":
        actor.write()
    else:
        actor.read()


if __name__ == "__main__":
    main()
