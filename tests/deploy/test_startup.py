"""Test what the service logs when it starts, and when it cannot start."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from urllib.request import urlopen

import pytest

from settings import VERSION, Settings, unknown_variables
from tests.support.live import LiveServer, await_true
from web.server.startup import open_listener, port_conflict, summary


def test_the_first_line_says_what_is_served() -> None:
    with LiveServer({"WEB_CONCURRENCY": "2", "QUEUE_THREADS": "10"}) as server:
        pid = server.pid
        first = server.log().splitlines()[0]
        begin, _, readers = first.removesuffix(" waiting readers").rpartition(", up to ")
        await_true(lambda: f"queue_readers_limit {readers.replace(',', '')}.0\n" in scraped(server))
    when, level, process, text = begin.split(" ", 3)
    assert datetime.fromisoformat(when).tzinfo is not None
    assert (level, process) == ("INFO", f"[{pid}]")
    assert text == (
        f"queue_service {VERSION} at {server.url} (open it in a browser for the page), "
        f"messages in {server.database}, access for anyone on this machine"
    )


def scraped(server: LiveServer) -> str:
    with urlopen(f"{server.url}/metrics") as reply:
        content: bytes = reply.read()
    return content.decode()


@pytest.mark.parametrize(
    ("settings", "access"),
    [
        ({}, "anyone on this machine"),
        ({"tokens": "a:b:c:d"}, "clients with a token"),
        ({"host": "0.0.0.0", "allow_anonymous": True}, "anyone who can reach the port"),
    ],
)
def test_the_first_line_says_who_has_access(settings: dict[str, object], access: str) -> None:
    assert f", access for {access}, up to" in summary(Settings(**settings), "http://127.0.0.1:5000", 1)  # type: ignore[arg-type]


def test_the_first_line_contains_no_password() -> None:
    url = "postgresql://user:s3cret@db.example:6432,[::1]:5432/queue?password=s3cret&sslmode=require"
    assert "messages in postgresql://db.example:6432,[::1]:5432/queue," in summary(
        Settings(database_url=url), "http://127.0.0.1:5000", 1
    )
    for hidden in (url, "postgresql://user:s3cret/@one/queue", "postgresql://user:s3cret@one?password=s3cret"):
        assert "s3cret" not in summary(Settings(database_url=hidden), "http://127.0.0.1:5000", 1)


def test_as_json_every_line_of_the_log_is_an_object() -> None:
    with LiveServer({"QUEUE_LOG": "json", "QUEUE_THREDS": "3"}) as server:
        server.stop()
        lines = [json.loads(line) for line in server.log().splitlines()]
    assert len(lines) > 3
    assert all({"time", "level", "pid", "logger", "message"} <= line.keys() for line in lines)
    assert lines[0]["level"] == "warning"
    assert lines[0]["message"] == "QUEUE_THREDS is not a setting of this service; did you mean QUEUE_THREADS?"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("QUEUE_DATABASE", "; did you mean QUEUE_DATABASE_URL?"),
        ("QUEUE_TOKEN_FILE", "; did you mean QUEUE_TOKENS_FILE?"),
        ("QUEUE_PORT", "; did you mean PORT?"),
        ("QUEUE_WORKERS", "; did you mean WEB_CONCURRENCY?"),
        ("QUEUE_XYZZY", ""),
    ],
)
def test_an_unknown_variable_is_named_with_the_nearest_known_one(name: str, hint: str) -> None:
    assert unknown_variables({name: "1"}) == [f"{name} is not a setting of this service{hint}"]


def test_known_variables_and_those_of_others_are_not_named() -> None:
    assert unknown_variables({"QUEUE_LOG": "json", "QUEUE_TOKEN": "t", "QUEUES": "3", "PATH": "/bin"}) == []


class OtherProgram(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def port_of_another_program() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), OtherProgram) as program:
        threading.Thread(target=program.serve_forever, daemon=True).start()
        yield program.server_port
        program.shutdown()


@contextmanager
def port_that_never_answers() -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()[1]


@contextmanager
def port_of_another_service() -> Iterator[int]:
    with LiveServer() as server:
        yield server.port


@pytest.mark.parametrize(
    ("taken", "owner"),
    [
        (port_of_another_program, "another program"),
        (port_that_never_answers, "another program"),
        (port_of_another_service, "another queue_service"),
    ],
)
def test_a_taken_port_ends_the_start_with_one_sentence(taken: object, owner: str) -> None:
    with taken() as port:  # type: ignore[operator]
        log = refusal({"PORT": str(port)})
    *waiting, sentence = log.splitlines()
    assert len(waiting) == (taken is not port_of_another_program)
    assert sentence.startswith(f"queue_service: port {port} is taken by {owner}; choose another, for example PORT=")


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"QUEUE_HOST": "192.0.2.1", "QUEUE_ALLOW_ANONYMOUS": "yes"}, "Cannot assign requested address"),
        ({"QUEUE_HOST": "127.0.0.1", "PORT": "0"}, None),
    ],
)
def test_an_address_that_cannot_be_listened_on_ends_the_start_with_one_sentence(
    environment: dict[str, str], reason: str | None
) -> None:
    settings = Settings.from_env({"PORT": "5000"} | environment)
    conflict = port_conflict(settings, print)
    assert conflict == (reason and f"cannot listen on {settings.bind}: {reason}")


def test_the_start_waits_for_a_port_that_another_service_is_closing() -> None:
    with LiveServer() as ending:
        successor = LiveServer({"PORT": str(ending.port)})
        successor.url, successor.port = ending.url, ending.port
        threading.Timer(0.5, ending.stop).start()
        with successor:
            assert "is taken" not in successor.log()


def test_a_listener_that_another_program_or_option_opened_to_the_network_needs_tokens_too() -> None:
    settings = Settings()
    for address, is_open in (("127.0.0.1", False), ("0.0.0.0", True)):
        with socket.create_server((address, 0)) as inherited:  # as from systemd
            sentence = open_listener(settings, [SimpleNamespace(sock=inherited)])
        assert (sentence is not None) == is_open
        assert open_listener(Settings(tokens="t"), [SimpleNamespace(sock=inherited)]) is None
    log = refusal({"GUNICORN_CMD_ARGS": "--bind 0.0.0.0:0"})
    assert "queue_service: the address 0.0.0.0 would let anyone who can reach this machine read and write;" in log


def refusal(environment: Mapping[str, str]) -> str:
    """Start the service, which must fail, and return its log."""
    server = LiveServer(dict(environment))
    try:
        with pytest.raises(RuntimeError):
            server.start()
        return server.log()
    finally:
        shutil.rmtree(server.directory)
