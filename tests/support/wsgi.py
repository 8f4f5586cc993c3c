"""Call the application like a server, and check what must be true of every reply."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from storage import open_store
from storage.store import Engine
from tests.support.contract import conforms
from tests.support.live import REPOSITORY

_MEMORY = Path("/dev/shm")


@contextmanager
def a_store(pollers: int = 2) -> Iterator[Engine]:
    """Return a new store, in memory if possible: hundreds of tests need one, and none a disk."""
    with (
        TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as directory,
        closing(open_store(f"sqlite:///{directory}/queue.db", pollers=pollers)) as store,
    ):
        yield store


class App(Protocol):
    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any], /) -> Iterable[bytes]: ...


class Reply(NamedTuple):
    """A reply; the names of `headers` are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """Return the values of an NDJSON body."""
        return [json.loads(line) for line in self.body.split(b"\n")[:-1]]


class Client:
    """Sends requests to a WSGI application, each in a new environ."""

    def __init__(self, app: App, **always: str) -> None:
        """Send the headers `always` with every request."""
        self._app = app
        self._always = always

    def get(self, target: str, **headers: str) -> Reply:
        return self.call("GET", target, **headers)

    def post(self, target: str, document: object, **headers: str) -> Reply:
        """Post a JSON document, with surrogates escaped."""
        headers = {"Content_Type": "application/json"} | headers
        return self.call("POST", target, json.dumps(document).encode(), **headers)

    def call(self, method: str, target: str, body: bytes = b"", /, **headers: str) -> Reply:
        """Return the checked reply. `headers` have _ for -; a REMOTE_ADDR of None is left out."""
        reply = self.unchecked(method, target, body, **headers)
        check(reply, method)
        conforms(method, target.partition("?")[0], *reply)
        return reply

    def unchecked(self, method: str, target: str, body: bytes = b"", /, **headers: str) -> Reply:
        """Return the reply as it is."""
        path, _, query = target.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "5000",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_X_REQUEST_ID": "0123456789abcdef",  # so that replies to equal requests are equal
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
        }
        if body or method in ("POST", "PUT", "PATCH"):
            environ["CONTENT_LENGTH"] = str(len(body))
        for name, value in (self._always | headers).items():
            name = name.upper()
            environ[name if name in ("CONTENT_TYPE", "CONTENT_LENGTH", "REMOTE_ADDR") else f"HTTP_{name}"] = value
        return self._run(environ)

    def _run(self, environ: dict[str, Any]) -> Reply:
        started: list[tuple[int, dict[str, str]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
            names = [name.lower() for name, _ in headers]
            assert len(set(names)) == len(names), f"a header stands twice: {headers}"
            started.append((int(status[:3]), dict(zip(names, (value for _, value in headers), strict=True))))

        pieces = self._app(environ, start_response)
        try:
            body = b"".join(pieces)
        finally:
            if hasattr(pieces, "close"):
                pieces.close()
        ((status, headers),) = started
        return Reply(status, headers, body)


def check(reply: Reply, method: str = "GET") -> None:
    """Check every reply: JSON, a page or nothing, never cached, every error a problem."""
    headers = reply.headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-request-id"]
    if reply.status == 204:
        assert reply.body == b""
        assert "content-type" not in headers
        assert "content-length" not in headers
        return
    if method == "HEAD":
        assert reply.body == b""
        return
    assert int(headers["content-length"]) == len(reply.body)
    assert reply.body.endswith(b"\n") or not reply.body
    if headers["content-type"].startswith("text/html"):
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        return
    if reply.status >= 400:
        check_problem(reply)
    elif headers["content-type"].startswith("text/plain"):
        assert reply.body.startswith(b"# HELP ")
    elif headers["content-type"] == "application/x-ndjson":
        assert isinstance(reply.lines, list)
    else:
        assert headers["content-type"] in ("application/json", "application/vnd.queue-service.runs+json")
        assert reply.body.count(b"\n") == 1
        assert isinstance(reply.json, dict | list)


def check_problem(reply: Reply) -> None:
    """Check an RFC 9457 problem document without internal details."""
    assert reply.headers["content-type"] == "application/problem+json"
    problem: Mapping[str, Any] = reply.json
    assert {"type", "title", "status", "detail", "code"} <= problem.keys()
    assert problem.keys() <= {"type", "title", "status", "detail", "code", "field", "index", "queue"}
    assert problem["status"] == reply.status
    assert problem["type"] == "about:blank"
    for name in ("title", "detail", "code"):
        assert isinstance(problem[name], str)
        assert problem[name]
    assert problem["code"].replace("_", "").islower()
    assert ("retry-after" in reply.headers) == (reply.status in (429, 503))
    if reply.status in (429, 503):
        assert int(reply.headers["retry-after"]) >= 1
    for inside in ("Traceback", 'File "', ".py", "SELECT ", "INSERT ", "sqlite", str(REPOSITORY), "<html"):
        assert inside not in reply.body.decode()
