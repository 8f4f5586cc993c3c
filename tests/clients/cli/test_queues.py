"""Test the commands that list, show and change queues."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from typing import Any

import pytest

from clients import NotFound
from tests.clients.cli.commands import Commands, refused


def documents(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_list_shows_the_counts_of_each_queue(commands: Commands) -> None:
    queue = commands.queue
    commands.client.send_many(["a", "b", "c"], queue=f"{queue}-x")
    commands.client.send("d", queue=f"{queue}-a", delay=60)
    commands.client.receive(lease=60, queue=f"{queue}-x")
    head, *rows = commands.output("list", f"{queue}-").splitlines()
    assert head.split() == ["QUEUE", "READY", "LEASED", "DELAYED", "BLOCKED", "DEAD", "SENT", "ACKED", "OLDEST"]
    assert [row.split()[:8] for row in rows] == [
        [f"{queue}-a", "0", "0", "1", "0", "0", "1", "0"],
        [f"{queue}-x", "2", "1", "0", "0", "0", "3", "0"],
    ]
    first, second = documents(commands.output("list", f"{queue}-", "--json"))
    assert (first["queue"], first["delayed"], second["queue"], second["leased"]) == (f"{queue}-a", 1, f"{queue}-x", 1)


def test_a_list_that_is_watched_shows_changes_until_it_is_interrupted(commands: Commands) -> None:
    commands.client.send("a")
    with commands.start("list", commands.queue, "--watch", "0.1", "--json") as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["ready"] == 1
        commands.client.send("b")
        while json.loads(watching.stdout.readline())["ready"] != 2:
            continue
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130
        assert watching.stderr is not None
        assert watching.stderr.read() == b""


def test_a_list_that_is_watched_on_a_terminal_stays_in_place(commands: Commands) -> None:
    commands.client.send("a")
    master, terminal = pty.openpty()
    with commands.start("list", commands.queue, "--watch", stdout=terminal) as watching:
        shown = b""
        while shown.count(b"\x1b[H\x1b[J") < 2:
            shown += os.read(master, 1000)
        watching.terminate()
        assert watching.wait(10) == 143
    os.close(terminal)
    os.close(master)
    assert f"{commands.queue}".encode() in shown


def test_the_reader_of_a_watched_list_may_end(commands: Commands) -> None:
    commands.client.send("a")
    assert commands.shell("$Q list $QUEUE --watch 0.1 --json | head -2").count("\n") == 2


def test_show_prints_settings_and_counts(commands: Commands) -> None:
    commands.client.put_settings({"max_receives": 7})
    commands.client.send("a")
    shown = dict(line.split(maxsplit=1) for line in commands.output("show", commands.queue).splitlines())
    assert (shown["max_receives"], shown["paused"], shown["ready"]) == ("7", "false", "1")
    (document,) = documents(commands.output("show", commands.queue, "--json"))
    assert document["queue"] == commands.queue
    assert document["settings"]["max_receives"] == 7
    assert document["stats"]["ready"] == 1


def test_peek_shows_messages_and_changes_nothing(commands: Commands) -> None:
    first = commands.client.send("a\x1b[31m\nb", key="k", priority=2, attributes={"n": 1})
    second = commands.client.send("c", key="k")
    head, *rows = commands.output("peek", commands.queue).splitlines()
    assert head.split() == ["ID", "STATE", "AGE", "TRIES", "HOLDER", "KEY", "TEXT"]
    assert [re.sub(r" \d+s ", " ", row).split() for row in rows] == [
        [first, "ready", "0", "k", r"a\x1b[31m\nb"],
        [second, "blocked", "0", "k", "c"],
    ]
    document, _ = documents(commands.output("peek", commands.queue, "--json"))
    assert document.pop("sent_at").endswith("Z")
    assert document == {
        "id": first, "state": "ready", "receive_count": 0, "text": "a\x1b[31m\nb", "key": "k", "priority": 2,
        "attributes": {"n": 1},
    }  # fmt: skip
    chosen = documents(commands.output("peek", commands.queue, "--json", "--state", "blocked", "--after", first))
    assert [message["id"] for message in chosen] == [second]
    (newest,) = documents(commands.output("peek", commands.queue, "--json", "--before", "999999999", "--limit", "1"))
    assert newest["id"] == second
    commands.client.receive(lease=60)
    leased, _ = commands.output("peek", commands.queue).splitlines()[1:]
    assert re.sub(r" \d+s ", " ", leased).split() == [first, "leased", "1", "127.0.0.1", "k", r"a\x1b[31m\nb"]
    document, _ = documents(commands.output("peek", commands.queue, "--json"))
    assert (document["leased_by"], document["leased_until"][-1]) == ("127.0.0.1", "Z")
    assert commands.output("peek", commands.queue, "--key", "none") == ""


def test_a_long_text_is_cut_on_a_terminal_only(commands: Commands) -> None:
    text = "x" * 300
    commands.client.send(text)
    assert text in commands.output("peek", commands.queue)
    master, terminal = pty.openpty()
    with commands.start("peek", commands.queue, stdout=terminal) as peeking:
        assert peeking.wait(20) == 0
    shown = os.read(master, 5000).decode()
    os.close(terminal)
    os.close(master)
    assert "xxx…" in shown
    assert text not in shown


def test_settings_are_changed_and_reset(commands: Commands) -> None:
    (document,) = documents(
        commands.output("set", commands.queue, "lease=90", "dead_letter_queue=elsewhere", "paused=true", "--json")
    )
    settings, _ = commands.client.settings()
    assert document["settings"] == settings
    assert (settings["lease"], settings["dead_letter_queue"], settings["paused"]) == (90, "elsewhere", True)
    commands.output("set", commands.queue, "dead_letter_queue=null")
    assert commands.client.settings()[0]["dead_letter_queue"] is None


@pytest.mark.parametrize("setting", ["leese=5", "lease"])
def test_a_misspelt_setting_is_refused_with_the_known_names(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(["set", "q", setting], capsys)
    assert "lease, max_receives" in error
    assert error.endswith(f"not '{setting}'")


def test_a_queue_is_paused_and_resumed(commands: Commands) -> None:
    commands.client.send("a")
    assert commands.output("pause", commands.queue) == ""
    assert commands.output("receive") == ""
    assert commands.output("resume", commands.queue) == ""
    assert commands.output("receive") == "a\n"


def test_messages_are_found_and_purged_by_text_reason_and_id(commands: Commands) -> None:
    commands.client.send_many(["cat.png", "dog.png", "Cat.png", "owl.png"])
    assert [one["text"] for one in documents(commands.output("peek", commands.queue, "--json", "--text", "at.p"))] == [
        "cat.png", "Cat.png",
    ]  # fmt: skip
    for message in commands.client.receive(limit=2, lease=60):
        message.reject(f"no {message.text}")
    dead = f"{commands.queue}.dead"
    (found,) = documents(commands.output("peek", dead, "--json", "--reason", "no dog.png"))
    assert found["text"] == "dog.png"
    assert commands.output("purge", dead, "--reason", "no dog.png") == "purged 1 message\n"
    ids = [f"--id={message.id}" for message in commands.client.peek()]
    assert commands.output("purge", *ids, commands.queue, "--json") == '{"purged": 2}\n'
    assert [message.text for message in commands.client.peek(queue=dead)] == ["cat.png"]


@pytest.mark.parametrize(("command", "output"), [("peek", ""), ("purge", "purged 0 messages\n")])
def test_a_reason_looked_for_in_the_queue_of_origin_names_the_queue_to_look_in(
    commands: Commands, command: str, output: str
) -> None:
    commands.client.put_settings({"dead_letter_queue": f"{commands.queue}.lost"})
    commands.client.send_many(["a", "b"])
    for message in commands.client.receive(limit=2, lease=60):
        message.reject("broken")
    done = commands.run(command, commands.queue, "--reason", "broken")
    assert (done.returncode, done.stdout.decode()) == (0, output)
    assert done.stderr.decode() == (
        f"queue-service: the dead letters of {commands.queue} with this reason are in {commands.queue}.lost: "
        f"{command} that queue\n"
    )
    assert commands.output(command, commands.queue, "--reason", "other") == output  # there are none


def test_show_lists_why_dead_letters_died(commands: Commands) -> None:
    commands.client.send_many(["a", "b", "c"])
    assert "REASON" not in commands.output("show", commands.queue)
    for message, reason in zip(commands.client.receive(limit=3, lease=60), ("x", "y", "x"), strict=True):
        message.reject(reason)
    for queue in (commands.queue, f"{commands.queue}.dead"):
        *_, head, first, second = commands.output("show", queue).splitlines()
        assert head.split() == ["DEAD", "OLDEST", "NEWEST", "REASON"]
        assert [(line.split()[0], line.split()[3]) for line in (first, second)] == [("2", "x"), ("1", "y")]
        (shown,) = documents(commands.output("show", queue, "--json"))
        assert [one["reason"] for one in shown["reasons"]] == ["x", "y"]


def test_purge_and_redrive_report_how_many(commands: Commands) -> None:
    for text in ("a", "b", "c"):
        commands.client.send(text)
        commands.client.receive(lease=60)[0].reject(f"{text} is wrong")
    dead = [message.id for message in commands.client.peek(queue=f"{commands.queue}.dead")]
    assert commands.output("redrive", commands.queue, "--reason", "b is wrong") == "redriven 1 message\n"
    assert commands.output("redrive", "--id", str(dead[0]), commands.queue, "--json") == '{"redriven": 1}\n'
    assert [message.text for message in commands.client.peek()] == ["b", "a"]
    assert commands.output("purge", commands.queue) == "purged 2 messages\n"
    assert commands.output("redrive", commands.queue, "--limit", "5") == "redriven 1 message\n"
    assert commands.output("purge", commands.queue, "--json") == '{"purged": 1}\n'


def test_a_queue_is_deleted_and_one_that_does_not_exist_is_an_error(commands: Commands) -> None:
    commands.client.send("a")
    assert commands.output("delete", commands.queue) == ""
    with pytest.raises(NotFound):
        commands.client.stats()
    for command in ("delete", "show"):
        error = f"queue-service: there is no queue '{commands.queue}'"
        assert commands.error(command, commands.queue) == (1, error)


def test_a_list_fits_a_program_that_reads_lines(commands: Commands) -> None:
    commands.client.send("a", queue=f"{commands.queue}-{'n' * 60}")
    done = subprocess.run(
        ["awk", "NR > 1 {print $2}"], input=commands.output("list", commands.queue), capture_output=True, text=True
    )
    assert done.stdout == "1\n"
