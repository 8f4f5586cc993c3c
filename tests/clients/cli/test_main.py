"""Test what all commands have in common: help, errors, completion, and a service that does not answer."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from clients import copy_file
from clients.cli import main, service
from settings import VERSION
from tests.clients.cli.commands import NO_SERVICE, Commands, refused
from tests.support.live import LiveServer, free_port

OVER_HTTP = [
    "send",
    "receive",
    "work",
    "copy",
    "list",
    "show",
    "peek",
    "purge",
    "redrive",
    "set",
    "pause",
    "resume",
    "delete",
]


def help_of(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="0"):
        main.main([*arguments, "--help"])
    return capsys.readouterr().out


def test_without_a_command_it_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 2
    shown = re.findall(r"^    (\S+)", capsys.readouterr().out, re.MULTILINE)
    assert sorted(shown) == sorted(["serve", *OVER_HTTP, *service.TOOLS, "token", "completion"])


def test_it_prints_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"queue-service {VERSION}\n"


@pytest.mark.parametrize("command", OVER_HTTP)
def test_help_shows_the_default_of_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(command, capsys=capsys)
    assert text.startswith(f"usage: queue-service {command} [-h]")
    options = re.findall(r"^  ((?:-c(?: N)?, )?--\S+)((?:.|\n   )*)", text, re.MULTILINE)
    assert len(options) >= 3
    for option, meaning in options:
        assert option in ("--produce", "--consume", "--no-resume") or "default" in meaning, option


@pytest.mark.parametrize("command", ["send", "receive", "work", "copy", "completion"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(command, capsys=capsys)
    assert re.search(rf"^    .*queue-service {command} ", text, re.MULTILINE)


def test_the_module_that_copies_shows_how_it_was_called(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        copy_file.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m clients.copy_file [-h]")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["receive", "--batch", "5000"], "argument --batch: must be a whole number, 1 to 1000, not '5000'"),
        (["receive", "--batch", "ten"], "argument --batch: must be a whole number, 1 to 1000, not 'ten'"),
        (["receive", "--limit", "0"], "argument --limit: must be a whole number, 1 or more, not '0'"),
        (["receive", "--lease", "0"], "argument --lease: must be a number, 1 to 43200, not '0'"),
        (["send", "--retry-for", "nan"], "argument --retry-for: must be a number, 0 or more, not 'nan'"),
        (
            ["purge", "q", "--id", "7", "--id", "8,9"],
            "argument --id: must be the id of a message, a whole number, not '8,9'",
        ),
        (["redrive", "q", "--id", "abc"], "argument --id: must be the id of a message, a whole number, not 'abc'"),
        (["redrive", "q", "52"], "unrecognized arguments: 52"),
        (["serve", "--prot", "80"], "unrecognized arguments: --prot 80"),
        (["copy", "a"], "give SRC and DST, or --produce SRC, or --consume DST"),
        (["copy", "a", "--produce", "b"], "give SRC and DST, or --produce SRC, or --consume DST"),
        (["copy", "--produce", "a", "--consume", "b"], "give SRC and DST, or --produce SRC, or --consume DST"),
        (["copy", "--consume", "a", "--follow"], "--follow is for the half that reads SRC"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(arguments, capsys) == f"queue-service {arguments[0]}: error: {error}"


def test_an_unknown_option_without_a_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(["--prot"], capsys) == "queue-service: error: unrecognized arguments: --prot"


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["send", "x"], ["receive"], ["show", "q"], ["work", "--", "true"], ["copy", __file__, "/tmp/copy"]],
)
def test_a_missing_service_is_one_sentence_and_an_exit_code_of_its_own(arguments: list[str]) -> None:
    command, *rest = arguments
    code, line = Commands("http://127.0.0.1:1", "q").error(command, "--retry-for", "0", *rest)
    assert code == NO_SERVICE
    assert line.startswith("queue-service: http://127.0.0.1:1 does not answer: connection refused")


def test_a_service_that_does_not_answer_is_reported_at_the_first_failed_try() -> None:
    server = LiveServer()
    commands = Commands(server.url, "q")
    with commands.start("list", "--json") as listing:
        assert listing.stderr is not None
        begun = time.monotonic()
        line = listing.stderr.readline().decode()
        assert time.monotonic() - begun < 10
        assert line == f"queue-service: {server.url} does not answer: connection refused; retrying for up to 30 s\n"
        with server:
            output, errors = listing.communicate(timeout=30)
    assert (listing.returncode, output, errors) == (0, b"", b"")


@pytest.mark.parametrize(
    ("url", "queue", "error"),
    [
        ("localhost", "q", "the URL of a service starts with http:// or https://"),
        (f"http://127.0.0.1:{free_port()}", "", "the queue name is empty"),
    ],
)
def test_a_wrong_url_or_name_is_one_sentence(url: str, queue: str, error: str) -> None:
    commands = Commands("http://127.0.0.1:1", "q")
    code, line = commands.error("receive", "--url", url, "--queue", queue)
    assert code == 1
    assert line.startswith(f"queue-service: {error}")


def test_a_reader_that_ends_early_is_no_error_to_report(commands: Commands) -> None:
    commands.client.send_many([f"{number} {'x' * 100}" for number in range(1000)])
    assert commands.shell("$Q peek $QUEUE --limit 1000 | true") == ""
    assert commands.shell("$Q peek $QUEUE --limit 1 | (exec <&-; sleep 3)") == ""


@pytest.mark.parametrize("shell", main.SHELLS)
def test_a_completion_script_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in (*OVER_HTTP, *service.TOOLS, "serve"))


@pytest.mark.parametrize(
    ("words", "completed"),
    [("queue-service re", "receive redrive reopen resume"), ("queue-service receive --lim", "--limit")],
)
def test_bash_completes_commands_and_options(words: str, completed: str) -> None:
    script = f"""
        source <({sys.executable} -m clients completion bash)
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        $(complete -p queue-service | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == completed.split()
