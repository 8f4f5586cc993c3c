"""100,000 lines of 60 bytes copied through the queue, against one message a request over one connection.

The other side sends a line, receives it with a lease and acks it, with requests (as our client uses) or the faster
http.client. It copies fewer lines, and its time is scaled up. Ours is the whole command, including Python's start and
the final check.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import requests

from benchmarks.call import Caller
from benchmarks.report import Result, compare, other_to_ours, seconds
from benchmarks.server import REPOSITORY, service

LINES = 100_000
SINGLE_LINES = 1_000
LINE = "x" * 60
ROUNDS = 3
LEAST = 100.0

Call = Callable[[str, str, str | None], str]  # from method, path and body to the reply's body


def file_copy() -> list[Result]:
    with (
        service() as ours,
        closing(Caller(ours.port)) as caller,
        tempfile.TemporaryDirectory(prefix="queue-bench-") as folder,
    ):
        source = Path(folder, "source")
        source.write_text(f"{LINE}\n" * LINES)
        by_requests, by_socket = _requests_call(ours.url), _http_client_call(caller)
        rounds = [(copy(source, ours.url), _singly(by_requests), _singly(by_socket)) for _ in range(ROUNDS)]
    return [
        Result(
            "clients.copy_file",
            "one a request",
            [
                compare("requests", [(r[0], r[1]) for r in rounds], seconds, ratio=other_to_ours, at_least=LEAST),
                compare("http.client", [(r[0], r[2]) for r in rounds], seconds, ratio=other_to_ours),
            ],
        )
    ]


def copy(source: Path, url: str) -> float:
    """Seconds of the command."""
    target = source.with_name("target")
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "clients.copy_file", str(source), str(target), "--url", url], cwd=REPOSITORY, check=True
    )
    taken = time.perf_counter() - start
    if target.read_bytes() != source.read_bytes():
        raise RuntimeError("the copy differs")
    target.unlink()
    return taken


def _singly(call: Call) -> float:
    """Return the seconds for LINES lines, measured with SINGLE_LINES."""
    written = []
    start = time.perf_counter()
    for _ in range(SINGLE_LINES):
        call("POST", "/messages", json.dumps({"text": LINE}))
        message = json.loads(call("GET", "/messages?lease=60", None))
        written.append(message["text"])
        call("DELETE", f"/messages/{message['receipt']}", None)
    taken = time.perf_counter() - start
    if written != [LINE] * SINGLE_LINES:
        raise RuntimeError("the copy differs")
    return taken * LINES / SINGLE_LINES


def _requests_call(url: str) -> Call:
    session = requests.Session()

    def call(method: str, path: str, body: str | None) -> str:
        reply = session.request(method, url + path, data=body, headers={"Content-Type": "application/json"}, timeout=30)
        reply.raise_for_status()
        return reply.text

    return call


def _http_client_call(caller: Caller) -> Call:
    return lambda method, path, body: caller.call(method, path, body).decode()
