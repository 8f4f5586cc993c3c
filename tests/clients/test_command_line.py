"""Test the commands as a shell runs them: pipes in, pipes out, and errors as one line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import pytest

from clients import QueueClient, copy_file
from clients.cli import pipes
from tests.support.live import REPOSITORY, LiveServer


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


def test_a_line_is_sent_without_waiting_for_the_next(service: tuple[str, ...], client: QueueClient) -> None:
    with started("send", *service) as sending:
        assert sending.stdin is not None
        sending.stdin.write(b"now\nnot yet")
        sending.stdin.flush()
        assert [message.text for message in client.receive(wait=10)] == ["now"]
        sending.stdin.close()
        assert [message.text for message in client.receive(wait=10)] == ["not yet"]
    assert sending.returncode == 0


def test_the_first_line_that_was_not_sent_is_named_and_those_before_it_are_in_the_queue(
    service: tuple[str, ...], client: QueueClient
) -> None:
    for wrong, error in ((b"\xff", b"line 3 is not UTF-8"), (b"x" * 9_000_000, b"line 3: ")):
        sent = command("send", *service, stdin=b"good\ngood too\n" + wrong + b"\nfourth\n")
        assert sent.returncode == 1
        assert sent.stderr.startswith(b"send: " + error)
        assert sent.stderr.endswith(b"; this line and those after it were not sent\n")
        assert [message.text for message in client.receive(limit=10)] == ["good", "good too"]


def test_a_full_queue_names_the_first_line_not_sent(service: tuple[str, ...], client: QueueClient) -> None:
    client.put_settings({"max_messages": 1500})
    sent = command("send", *service, "--retry-for", "0", stdin=b"line\n" * 2500)
    assert (sent.returncode, sent.stderr.count(b"\n")) == (1, 1)
    assert sent.stderr.endswith(b"; line 1001 and those after it were not sent\n")
    assert client.stats()["ready"] == 1000


def test_without_an_answer_the_lines_that_may_have_been_sent_are_named() -> None:
    sent = command("send", "--url", "http://127.0.0.1:1", "--retry-for", "0", stdin=b"line\n" * 3)
    assert sent.returncode == 1
    assert sent.stderr.endswith(b"connection refused; lines 1 to 3 may have been sent, those after them were not\n")


def test_long_lines_that_exceed_one_request_are_sent_in_several(service: tuple[str, ...], client: QueueClient) -> None:
    long = "x" * 5_000_000
    assert command("send", *service, stdin=f"a\n{long}\n{long}\nb\n".encode()).returncode == 0
    assert [message.text for message in client.receive(limit=4, lease=30)] == ["a", long, long, "b"]


def test_messages_of_several_requests_come_in_order_and_are_acked(
    service: tuple[str, ...], client: QueueClient
) -> None:
    numbers = b"".join(b"%d\n" % n for n in range(2500))
    assert command("send", *service, stdin=numbers).returncode == 0
    first = command("receive", *service, "--limit", "1200").stdout
    assert client.stats()["acked"] == 1200
    assert first + command("receive", *service).stdout == numbers
    assert client.stats()["acked"] == 2500


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--batch", "5000"], "argument --batch: must be a whole number, 1 to 1000, not '5000'"),
        (["--batch", "ten"], "argument --batch: must be a whole number, 1 to 1000, not 'ten'"),
        (["--limit", "0"], "argument --limit: must be a whole number, 1 or more, not '0'"),
        (["--lease", "0"], "argument --lease: must be a number, 1 to 43200, not '0'"),
        (["--retry-for", "nan"], "argument --retry-for: must be a number, 0 or more, not 'nan'"),
        (["--queue", ""], "argument --queue: the name is empty"),
    ],
)
def test_an_option_out_of_its_bounds_is_named(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        pipes.receive_main(arguments)
    assert capsys.readouterr().err.splitlines()[-1] == f"queue-receive: error: {error}"


@pytest.mark.parametrize(
    ("shown", "main", "arguments"),
    [
        ("python -m clients send", pipes.main, ["send", "--help"]),
        ("python -m clients receive", pipes.main, ["receive", "--help"]),
        ("queue-send", pipes.send_main, ["--help"]),
        ("queue-receive", pipes.receive_main, ["--help"]),
        ("queue-copy", copy_file.main, ["--help"]),
        ("python -m clients.copy_file", partial(copy_file.main, prog="python -m clients.copy_file"), ["--help"]),
    ],
)
def test_help_shows_how_the_command_was_called_and_the_default_of_every_option(
    shown: str, main: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    help_text = capsys.readouterr().out
    assert help_text.startswith(f"usage: {shown} [-h]")
    assert f"    {shown} " in help_text or f"| {shown} " in help_text  # an example
    options = re.findall(r"^  (--\S+)((?:.|\n   )*)", help_text, re.MULTILINE)
    assert len(options) >= 4
    for option, text in options:
        assert option in ("--produce", "--consume", "--no-resume") or "default" in text, option


def test_receive_stops_at_its_limit_and_leaves_the_rest(service: tuple[str, ...], client: QueueClient) -> None:
    client.send_many(["a", "b", "c"])
    assert command("receive", *service, "--limit", "2").stdout == b"a\nb\n"
    assert [message.text for message in client.peek()] == ["c"]


def test_follow_prints_new_messages_and_exits_cleanly_when_interrupted(
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
def test_messages_that_a_broken_pipe_did_not_accept_stay_in_the_queue(
    service: tuple[str, ...], client: QueueClient, unbuffered: str
) -> None:
    text = "x" * 100_000  # more than a pipe can buffer
    client.send_many([text, text])
    with started("receive", *service, "--lease", "600", PYTHONUNBUFFERED=unbuffered) as receiving:
        assert receiving.stdout is not None
        assert receiving.stderr is not None
        receiving.stdout.read(10)
        receiving.stdout.close()
        assert receiving.wait(10) == 1
        assert receiving.stderr.read() == b""
    assert [message.state for message in client.peek()] == ["ready", "ready"]


def test_an_unreachable_service_is_reported_in_one_line() -> None:
    failed = command("receive", "--url", "http://127.0.0.1:1", "--retry-for", "0")
    assert failed.returncode == 1
    assert failed.stderr == b"receive: http://127.0.0.1:1 does not answer: connection refused\n"


def test_an_invalid_url_is_reported_in_one_line() -> None:
    failed = command("receive", "--url", "localhost")
    reason = b"the URL of a service starts with http:// or https://, as in http://127.0.0.1:5000, not 'localhost'"
    assert (failed.returncode, failed.stderr) == (1, b"receive: " + reason + b"\n")
