"""Test `queue-service work`: commands that succeed, fail, run while a signal or a fault arrives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clients import Attribute, Message
from tests.clients.cli.commands import Commands, Running
from tests.support.live import LiveServer, await_true


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """Return a file to which commands write what they did."""
    (file := tmp_path / "done").touch()
    return file


def script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def dead_letters(commands: Commands) -> list[Message]:
    return commands.client.peek(queue=f"{commands.queue}.dead")


def test_a_command_gets_text_and_attributes_and_its_exit_code_0_acks(commands: Commands, done: Path) -> None:
    attributes: dict[str, Attribute] = {"trace-id": "a b", "n": 1.5, "on": True, "none": None}
    id = commands.client.send("two\nlines é", key="k", attributes=attributes)
    handle = script(done.parent / "handle.sh", f'env | grep ^MESSAGE_ | sort > "{done}"; cat >> "{done}"; echo "$1"')
    assert commands.output("work", "--idle", "0", "--", handle, "-v") == "-v\n"
    assert done.read_text().splitlines() == [
        "MESSAGE_ATTRIBUTE_N=1.5", "MESSAGE_ATTRIBUTE_NONE=null", "MESSAGE_ATTRIBUTE_ON=true",
        "MESSAGE_ATTRIBUTE_TRACE_ID=a b", f"MESSAGE_ID={id}", "MESSAGE_KEY=k", f"MESSAGE_QUEUE={commands.queue}",
        "MESSAGE_RECEIVE_COUNT=1", "two", "lines é",
    ]  # fmt: skip
    assert commands.client.stats()["acked"] == 1


def test_exit_code_100_rejects_and_any_other_is_retried_until_the_last_try(commands: Commands) -> None:
    for code in ("100", "3"):
        commands.client.send(code)
    worked = commands.run("work", "--idle", "2", "--max-tries", "2", "--", "sh", "-c", "exit $(cat)")
    assert worked.returncode == 0
    first, last = worked.stderr.decode().splitlines()
    assert first.endswith("failed; next try in 1 s: exit code 3")
    assert last.endswith("failed; it was the last one: exit code 3")
    assert [(message.text, message.attributes["dead_letter_reason"]) for message in dead_letters(commands)] == [
        ("100", "exit code 100"),
        ("3", "CommandFailed: exit code 3"),
    ]
    assert commands.client.stats()["acked"] == 0


def test_a_command_that_a_signal_ended_is_retried(commands: Commands) -> None:
    commands.client.send("x")
    commands.run("work", "--idle", "0", "--max-tries", "1", "--", "sh", "-c", "kill -9 $$")
    assert [message.attributes["dead_letter_reason"] for message in dead_letters(commands)] == [
        "CommandFailed: SIGKILL"
    ]


def test_a_command_that_does_not_read_its_message_may_succeed(commands: Commands) -> None:
    commands.client.send("x" * 1_000_000)
    assert commands.output("work", "--idle", "0", "--", "true") == ""
    assert commands.client.stats()["acked"] == 1


def test_several_commands_run_at_once(commands: Commands, done: Path) -> None:
    commands.client.send_many(["a", "b", "c"])
    meet = f'echo $$ >> "{done}"; while [ $(wc -l < "{done}") -lt 3 ]; do sleep 0.05; done'
    assert commands.output("work", "--idle", "0", "-c", "3", "--", "sh", "-c", meet) == ""
    assert commands.client.stats()["acked"] == 3


def test_a_program_that_does_not_exist_costs_no_message_a_try(commands: Commands) -> None:
    commands.client.send("a")
    assert commands.error("work", "--", "./none.sh") == (1, "queue-service: ./none.sh is not a program that can be run")
    assert [message.receive_count for message in commands.client.peek()] == [0]


@contextmanager
def started(commands: Commands, done: Path) -> Iterator[Running]:
    """Start work whose two commands note their beginning, wait until the file `go` exists, and note their end."""
    go = done.parent / "go"
    wait = f'n=0; while [ ! -e "{go}" ] && [ $n -lt 400 ]; do sleep 0.05; n=$((n + 1)); done'
    line = f'id=$(cat); echo "began $id" >> "{done}"; {wait}; echo "ended $id" >> "{done}"'
    arguments = ["-c", "2", "--lease", "600", "--", "sh", "-c", line]
    with commands.start("work", *arguments, start_new_session=True) as work:
        await_true(lambda: done.read_text().count("began") == 2)
        yield work


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_commands_end_and_loses_nothing(commands: Commands, done: Path, number: int) -> None:
    commands.client.send_many(["1", "2", "3", "4"])
    with started(commands, done) as work:
        os.killpg(work.pid, number)  # as Ctrl-C does at a terminal: to the whole group
        time.sleep(0.5)
        assert work.poll() is None
        (done.parent / "go").touch()
        assert work.wait(10) == 0
        assert work.stderr is not None
        assert work.stderr.read() == b""
    assert sorted(done.read_text().splitlines()) == ["began 1", "began 2", "ended 1", "ended 2"]
    left = commands.client.receive(limit=10, lease=30)
    assert [(message.text, message.receive_count) for message in left] == [("3", 1), ("4", 1)]
    assert commands.client.stats()["acked"] == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_the_commands_and_hands_their_messages_back_uncounted(
    commands: Commands, done: Path, number: int, code: int
) -> None:
    commands.client.send_many(["1", "2", "3"])
    with started(commands, done) as work:
        work.send_signal(number)
        time.sleep(0.5)
        work.send_signal(number)
        assert work.wait(10) == code
    (done.parent / "go").touch()
    messages = commands.client.receive(limit=10, lease=30)
    assert [(message.text, message.receive_count) for message in messages] == [("1", 1), ("2", 1), ("3", 1)]
    time.sleep(0.2)
    assert "ended" not in done.read_text()


def await_lines(file: Path, count: int) -> None:
    await_true(lambda: len(file.read_text().split()) > count)


def test_a_service_that_is_killed_and_restarted_in_the_middle_loses_nothing(done: Path) -> None:
    texts = [f"{number}" for number in range(60)]
    with LiveServer() as server, Commands(server.url, "q") as commands:
        commands.client.send_many(texts)
        note = f'id=$(cat); sleep 0.05; echo "$id" >> "{done}"'
        with commands.start("work", "--idle", "1", "-c", "4", "--", "sh", "-c", note) as work:
            for lines in (10, 30):
                await_lines(done, lines)
                server.kill()
                time.sleep(0.3)
                server.start()
            _, errors = work.communicate(timeout=60)
        assert work.returncode == 0, errors
        assert commands.client.stats()["ready"] + commands.client.stats()["leased"] == 0
    assert set(done.read_text().split()) == set(texts)
