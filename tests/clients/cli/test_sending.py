"""Test `queue-service send`."""

from __future__ import annotations

import json

import pytest

from tests.clients.cli.commands import NO_SERVICE, Commands, refused


def test_a_line_is_sent_without_waiting_for_the_next(commands: Commands) -> None:
    with commands.start("send") as sending:
        assert sending.stdin is not None
        sending.stdin.write(b"now\nnot yet")
        sending.stdin.flush()
        assert [message.text for message in commands.client.receive(wait=10)] == ["now"]
        sending.stdin.close()
        assert [message.text for message in commands.client.receive(wait=10)] == ["not yet"]
    assert sending.returncode == 0


def test_texts_are_sent_with_the_fields_of_the_options_and_their_ids_are_printed(commands: Commands) -> None:
    ids = commands.output(
        "send", "--key", "k", "--priority", "7", "--recipient", "r", "--delay", "60", "--ttl", "90",
        "--attribute", "a=1", "--attribute", "b=x=y", "one", "two é",
    ).splitlines()  # fmt: skip
    first, second = commands.client.peek()
    assert [first.id, second.id] == ids
    assert (first.text, second.text) == ("one", "two é")
    assert (second.key, second.priority, second.recipient, second.delay, second.ttl) == ("k", 7, "r", 60, 90)
    assert second.attributes == {"a": "1", "b": "x=y"}


def test_the_fields_of_the_options_apply_to_lines_too(commands: Commands) -> None:
    assert commands.output("send", "--priority", "3", stdin=b"a\nb\n") == ""
    assert [(message.text, message.priority) for message in commands.client.peek()] == [("a", 3), ("b", 3)]


def test_a_line_of_json_is_a_whole_message_and_its_fields_take_precedence(commands: Commands) -> None:
    lines = b'{"text": "a", "priority": 1}\n{"text": "b", "key": "k"}\n'
    assert commands.output("send", "--json", "--priority", "9", stdin=lines) == ""
    assert [(message.text, message.priority, message.key) for message in commands.client.peek()] == [
        ("a", 1, None),
        ("b", 9, "k"),
    ]


def test_json_that_receive_prints_can_be_sent_again(commands: Commands) -> None:
    commands.client.send("a\nb", key="k", attributes={"n": 1})
    printed = commands.output("receive", "--json")
    assert json.loads(printed).keys() >= {"id", "sent_at", "receive_count"}
    commands.output("send", "--json", stdin=printed.encode())
    (message,) = commands.client.peek()
    assert (message.text, message.key, message.attributes) == ("a\nb", "k", {"n": 1})


@pytest.mark.parametrize(
    ("options", "wrong", "error"),
    [
        ([], b"\xff", "line 3: it is not UTF-8"),
        ([], b"x" * 9_000_000, "line 3: "),
        (["--json"], b"{", "line 3: it is not JSON: "),
        (["--json"], b"[" * 100_000, "line 3: it is not JSON: "),
        (["--json"], b'"text"', "line 3: it is not a JSON object"),
        (["--json"], b'{"text": "x", "colour": "red"}', "line 3: "),
    ],
)
def test_the_first_line_that_was_not_sent_is_named_and_those_before_it_are_in_the_queue(
    commands: Commands, options: list[str], wrong: bytes, error: str
) -> None:
    good = [b'{"text": "good"}', b'{"text": "good too"}'] if options else [b"good", b"good too"]
    code, line = commands.error("send", *options, stdin=b"\n".join([*good, wrong, good[0]]))
    assert code == 1
    assert line.startswith(f"queue-service: {error}")
    assert line.endswith("; this line and those after it were not sent")
    assert [message.text for message in commands.client.receive(limit=10)] == ["good", "good too"]


def test_a_full_queue_names_the_first_line_not_sent(commands: Commands) -> None:
    commands.client.put_settings({"max_messages": 1500})
    code, line = commands.error("send", "--retry-for", "0", stdin=b"line\n" * 2500)
    assert code == 1
    assert line.endswith("; line 1001 and those after it were not sent")
    assert commands.client.stats()["ready"] == 1000


def test_without_an_answer_the_lines_that_may_have_been_sent_are_named() -> None:
    commands = Commands("http://127.0.0.1:1", "q")
    code, line = commands.error("send", "--retry-for", "0", stdin=b"line\n" * 3)
    assert code == NO_SERVICE
    assert line.endswith("connection refused; lines 1 to 3 may have been sent, those after were not")


def test_long_lines_that_exceed_one_request_are_sent_in_several(commands: Commands) -> None:
    long = "x" * 5_000_000
    commands.output("send", stdin=f"a\n{long}\n{long}\nb\n".encode())
    assert [message.text for message in commands.client.receive(limit=4, lease=30)] == ["a", long, long, "b"]


@pytest.mark.parametrize("attribute", ["a", "=b"])
def test_an_attribute_without_a_name_or_a_value_is_refused(attribute: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(["send", "--attribute", attribute, "text"], capsys)
    assert error == f"queue-service send: error: argument --attribute: must be NAME=VALUE, not '{attribute}'"
