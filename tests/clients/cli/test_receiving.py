"""Test `queue-service receive` with real pipes: what the next command did not read stays in the queue."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from threading import Timer

import pytest

from tests.clients.cli.commands import Commands
from tests.support.live import LiveServer, await_true


def test_lines_go_in_and_come_out_of_pipes(commands: Commands) -> None:
    lines = "one\n\ntwo\r\n\u2028three\x85\nexit\nlast".encode()
    commands.output("send", stdin=lines)
    assert commands.output("receive").encode() == lines + b"\n"


def test_messages_of_several_requests_come_in_order_and_are_acked(commands: Commands) -> None:
    numbers = b"".join(b"%d\n" % n for n in range(2500))
    commands.output("send", stdin=numbers)
    first = commands.output("receive", "--limit", "1200")
    assert commands.client.stats()["acked"] == 1200
    assert (first + commands.output("receive", "--batch", "300")).encode() == numbers
    assert commands.client.stats()["acked"] == 2500


def test_a_file_gets_all_messages(commands: Commands, tmp_path: Path) -> None:
    commands.client.send_many([str(number) for number in range(100)])
    commands.shell(f"$Q receive --queue $QUEUE > {tmp_path}/file")
    assert (tmp_path / "file").read_text() == "".join(f"{number}\n" for number in range(100))
    assert commands.client.stats()["acked"] == 100


def test_receive_stops_at_its_limit_and_leaves_the_rest(commands: Commands) -> None:
    commands.client.send_many(["a", "b", "c"])
    assert commands.output("receive", "--limit", "2") == "a\nb\n"
    assert [message.text for message in commands.client.peek()] == ["c"]


def test_json_has_all_fields_of_a_message(commands: Commands) -> None:
    sent = commands.client.send("a", key="k", priority=3, attributes={"x": None})
    printed = json.loads(commands.output("receive", "--json"))
    assert printed.pop("sent_at")
    assert printed == {
        "id": sent, "queue": commands.queue, "receive_count": 1, "text": "a", "key": "k", "priority": 3,
        "attributes": {"x": None},
    }  # fmt: skip


@pytest.mark.parametrize("reader", ["head -2", "grep -m1 3", "(read a; read b; echo $a; echo $b)"])
def test_a_next_command_that_stops_early_loses_nothing(commands: Commands, reader: str) -> None:
    numbers = [f"{number}" for number in range(2, 2500)]
    for start in range(0, len(numbers), 1000):
        commands.client.send_many(numbers[start : start + 1000])
    commands.shell(f"$Q receive --queue $QUEUE --lease 600 | {reader}")
    left = [message.text for message in commands.client.receive(limit=1000)]
    left += [message.text for message in commands.client.receive(limit=1000, wait=5)]
    left += [message.text for message in commands.client.receive(limit=1000, wait=5)]
    assert left == numbers[2:]
    assert commands.client.stats()["acked"] == 2


def test_messages_that_the_next_command_has_not_read_are_redelivered_uncounted(commands: Commands) -> None:
    commands.client.send_many(["a", "b", "c"])
    commands.shell("$Q receive --queue $QUEUE --lease 600 | head -1")
    assert [message.receive_count for message in commands.client.receive(limit=3, lease=30)] == [1, 1]


def test_a_message_longer_than_a_pipe_is_acked_only_when_all_of_it_was_read(commands: Commands) -> None:
    text = "x" * 200_000
    commands.client.send_many([text, text])
    read = f"{sys.executable} -c 'import os; print(sum(len(os.read(0, 1)) for _ in range({len(text) + 1})))'"
    assert commands.shell(f"$Q receive --queue $QUEUE --lease 600 | {read}") == f"{len(text) + 1}\n"
    assert (commands.client.stats()["acked"], commands.client.stats()["ready"]) == (1, 1)


def test_a_pipe_that_another_command_filled_is_waited_for(commands: Commands) -> None:
    commands.client.send_many(["a", "b", "c"])
    line = "(seq 10000 | head -c 40000; $Q receive --queue $QUEUE --lease 600) | (sleep 2; head -c 40002)"
    assert commands.shell(line)[40_000:] == "a\n"
    assert commands.client.stats()["acked"] == 1


def test_a_reader_slower_than_the_lease_keeps_its_messages(commands: Commands) -> None:
    commands.client.send_many(["a", "b", "c"])
    with commands.start("receive", "--lease", "1") as receiving:
        assert receiving.stdout is not None
        for text in (b"a\n", b"b\n", b"c\n"):
            assert receiving.stdout.readline() == text
            time.sleep(1.5)
            assert commands.client.receive(lease=30) == []
    assert commands.client.stats()["acked"] == 3


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_messages_that_a_broken_pipe_did_not_accept_stay_in_the_queue(
    commands: Commands, unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "x" * 100_000  # more than a pipe can buffer
    commands.client.send_many([text, text])
    environment = os.environ | {"QUEUE_URL": commands.client.url, "PYTHONUNBUFFERED": unbuffered}
    with commands.start("receive", "--lease", "600", env=environment) as receiving:
        assert receiving.stdout is not None
        assert receiving.stderr is not None
        receiving.stdout.read(10)
        receiving.stdout.close()
        assert receiving.wait(10) == 1
        assert receiving.stderr.read() == b""
    assert [message.state for message in commands.client.peek()] == ["ready", "ready"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_follow_prints_new_messages_and_exits_cleanly_when_interrupted(
    commands: Commands, number: int, code: int
) -> None:
    with commands.start("receive", "--follow") as following:
        assert following.stdout is not None
        assert following.stderr is not None
        for text in ("first", "second"):
            commands.client.send(text)
            assert following.stdout.readline() == text.encode() + b"\n"
        await_true(lambda: commands.client.stats()["acked"] == 2)
        following.send_signal(number)
        assert following.wait(10) == code
        assert following.stderr.read() == b""
    commands.client.send("third")
    assert [message.text for message in commands.client.receive()] == ["third"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_with_a_stuck_pipe_releases_what_was_not_read(commands: Commands, number: int) -> None:
    commands.client.send_many(["a", "b", "c"])
    with commands.start("receive", "--lease", "600") as receiving:
        assert receiving.stdout is not None
        assert receiving.stdout.read(2) == b"a\n"
        await_true(lambda: commands.client.stats()["leased"] == 3)
        receiving.send_signal(number)
        assert receiving.wait(10) in (130, 143)
    assert [message.state for message in commands.client.peek()] == ["ready", "ready"]


def test_a_wait_ends_with_the_first_messages(commands: Commands) -> None:
    with commands.start("receive", "--wait", "3") as receiving:
        time.sleep(0.5)
        commands.client.send("late")
        output, _ = receiving.communicate(timeout=20)
    assert (receiving.returncode, output) == (0, b"late\n")


def test_a_service_that_is_killed_and_restarted_in_the_middle_loses_nothing() -> None:
    numbers = [f"{number}" for number in range(5000)]
    received = []
    with LiveServer() as server, Commands(server.url, "q") as commands:
        for start in range(0, len(numbers), 1000):
            commands.client.send_many(numbers[start : start + 1000])
        with commands.start("receive") as receiving:
            assert receiving.stdout is not None
            assert receiving.stderr is not None
            for line in receiving.stdout:
                received.append(line.decode().rstrip())
                if len(received) == 500:
                    server.kill()
                    starting = Timer(1, server.start)
                    starting.start()
            starting.join()
            errors = receiving.stderr.read().decode()
        assert receiving.returncode == 0, errors
        assert re.match(r"queue-service: \S+ does not answer: .*; retrying for up to 30 s\n", errors)
        assert commands.client.stats()["acked"] == len(numbers)
    assert received == numbers
