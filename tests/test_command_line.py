"""The commands as a shell runs them: pipes in, pipes out, and faults as one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from clients import QueueClient
from tests.live import REPOSITORY, LiveServer


def command(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "clients", *arguments], cwd=REPOSITORY, input=stdin, capture_output=True, timeout=30
    )


def started(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "clients", *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def client(server: LiveServer, queue: str) -> QueueClient:
    return QueueClient(server.url, queue=queue)


@pytest.fixture
def service(server: LiveServer, queue: str) -> tuple[str, ...]:
    return "--url", server.url, "--queue", queue


def test_lines_go_in_and_come_out_of_pipes(service: tuple[str, ...]) -> None:
    lines = "one\n\ntwo\r\n\u2028three\x85\nexit\nlast".encode()
    assert command("send", *service, stdin=lines).returncode == 0
    received = command("receive", *service)
    assert (received.returncode, received.stdout) == (0, lines + b"\n")


def test_a_line_goes_out_without_waiting_for_the_next(service: tuple[str, ...], client: QueueClient) -> None:
    with started("send", *service) as sending:
        assert sending.stdin is not None
        sending.stdin.write(b"now\nnot yet")
        sending.stdin.flush()
        assert [message.text for message in client.receive(wait=10)] == ["now"]
        sending.stdin.close()
        assert [message.text for message in client.receive(wait=10)] == ["not yet"]
    assert sending.returncode == 0


def test_a_line_that_is_no_utf_8_is_named(service: tuple[str, ...]) -> None:
    sent = command("send", *service, stdin=b"good\n\xff\n")
    assert (sent.returncode, sent.stderr) == (1, b"send: line 2 is not UTF-8; the lines before its batch were sent\n")


def test_receive_stops_at_its_limit_and_leaves_the_rest(service: tuple[str, ...], client: QueueClient) -> None:
    client.send_many(["a", "b", "c"])
    assert command("receive", *service, "--limit", "2").stdout == b"a\nb\n"
    assert [message.text for message in client.peek()] == ["c"]


def test_follow_prints_what_comes_and_ends_tidily_when_interrupted(
    service: tuple[str, ...], client: QueueClient
) -> None:
    with started("receive", *service, "--follow") as following:
        assert following.stdout is not None
        assert following.stderr is not None
        for text in ("first", "second"):
            client.send(text)
            assert following.stdout.readline() == text.encode() + b"\n"
        time.sleep(0.2)
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 130
        assert following.stderr.read() == b""
    assert client.stats()["acked"] == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_a_broken_pipe_did_not_take_is_still_in_the_queue(
    service: tuple[str, ...], client: QueueClient, unbuffered: str
) -> None:
    text = "x" * 100_000  # more than a pipe holds
    client.send_many([text, text])
    with started("receive", *service, "--lease", "600", PYTHONUNBUFFERED=unbuffered) as receiving:
        assert receiving.stdout is not None
        assert receiving.stderr is not None
        receiving.stdout.read(10)
        receiving.stdout.close()
        assert receiving.wait(10) == 1
        assert receiving.stderr.read() == b""
    assert [message.state for message in client.peek()] == ["ready", "ready"]


def test_no_service_is_one_line_and_not_a_traceback() -> None:
    failed = command("receive", "--url", "http://127.0.0.1:1", "--patience", "0")
    assert failed.returncode == 1
    assert failed.stderr == b"receive: http://127.0.0.1:1 does not answer: connection refused\n"


def test_a_url_that_is_none_is_one_line() -> None:
    failed = command("receive", "--url", "localhost")
    assert (failed.returncode, failed.stderr) == (1, b"receive: not the URL of a service: 'localhost'\n")
