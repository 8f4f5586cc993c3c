"""Test `queue-service copy` of pipes and of files that grow, and the mode of a copy."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Timer

import pytest

from clients.copying.source import FollowedFile
from tests.clients.cli.commands import Commands, Running
from tests.support.live import LiveServer, await_true


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def lines(count: int) -> bytes:
    return b"".join(b"%07d %s\n" % (n, b"-" * 52) for n in range(count))


def is_clean(commands: Commands, folder: Path, *files: str) -> bool:
    """Return whether only these files are in the folder, and no queue of a copy is left."""
    return sorted(os.listdir(folder)) == sorted(files) and not commands.client.queues("copy-")


def is_begun(folder: Path) -> Callable[[], bool]:
    return lambda: any(part.stat().st_size for part in folder.glob("*.part"))


@pytest.mark.parametrize(
    "line",
    [
        "$Q copy - {target} < {file}",
        "$Q copy <(cat {file}) {target}",
        "cat {file} | $Q copy - {target}",
        "(head -c 5000 {file}; sleep 1; tail -c +5001 {file}) | $Q copy - {target}",
    ],
)
def test_a_pipe_is_copied_to_its_end(commands: Commands, tmp_path: Path, line: str, target: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(lines(20_000) + b"\xff\0no newline")
    assert commands.shell(line.format(file=file, target=target)) == ""
    assert target.read_bytes() == file.read_bytes()
    assert is_clean(commands, tmp_path, "file", "target")


def test_a_pipe_goes_through_both_halves(commands: Commands, tmp_path: Path, target: Path) -> None:
    line = f"$Q copy --consume {target} --queue $QUEUE & seq 30000 | $Q copy --produce - --queue $QUEUE; wait"
    commands.shell(line.replace("& seq", "2> /dev/null & seq"))  # the consumer reports that it waits
    assert target.read_bytes() == b"".join(b"%d\n" % number for number in range(1, 30_001))
    assert is_clean(commands, tmp_path, "target")


def test_a_copy_of_a_pipe_outlives_a_kill_of_the_service(tmp_path: Path, target: Path) -> None:
    with LiveServer() as server, Commands(server.url, "q") as commands:
        with commands.start("copy", "-", str(target), "--lease", "1") as copying:
            assert copying.stdin is not None
            copying.stdin.write(lines(20_000))
            copying.stdin.flush()
            await_true(is_begun(tmp_path))
            server.kill()
            starting = Timer(1, server.start)
            starting.start()
            _, errors = copying.communicate(lines(5_000), timeout=60)
            starting.join()
        assert copying.returncode == 0, errors
        assert target.read_bytes() == lines(20_000) + lines(5_000)
        assert is_clean(commands, tmp_path, "target")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_copy_of_a_pipe_leaves_nothing_behind(
    commands: Commands, tmp_path: Path, target: Path, number: int, code: int
) -> None:
    target.write_bytes(b"as it was")
    with commands.start("copy", "-", str(target)) as copying:
        assert copying.stdin is not None
        assert copying.stderr is not None
        copying.stdin.write(lines(20_000))
        copying.stdin.flush()
        await_true(is_begun(tmp_path))
        copying.send_signal(number)
        assert copying.wait(20) == code
        assert copying.stderr.read() == b"queue-service: interrupted; nothing was copied\n"
    assert target.read_bytes() == b"as it was"
    assert is_clean(commands, tmp_path, "target")


def test_without_a_service_an_interrupted_copy_of_a_pipe_ends_soon(tmp_path: Path, target: Path) -> None:
    with LiveServer() as server, Commands(server.url, "q") as commands:
        with commands.start("copy", "-", str(target)) as copying:
            assert copying.stdin is not None
            copying.stdin.write(lines(20_000))
            copying.stdin.flush()
            await_true(is_begun(tmp_path))
            server.kill()
            time.sleep(1)
            copying.send_signal(signal.SIGINT)
            assert copying.wait(10) == 130
        server.start()
        commands.shell(f"echo again | $Q copy - {target}")
        assert is_clean(commands, tmp_path, "target")


def test_after_a_killed_copy_of_a_pipe_the_next_copy_clears_what_it_left(
    commands: Commands, tmp_path: Path, target: Path
) -> None:
    with commands.start("copy", "-", str(target)) as copying:
        assert copying.stdin is not None
        copying.stdin.write(lines(20_000))
        copying.stdin.flush()
        await_true(is_begun(tmp_path))
        copying.kill()
    assert not is_clean(commands, tmp_path)
    commands.shell(f"echo again | $Q copy - {target}")
    assert target.read_bytes() == b"again\n"
    assert is_clean(commands, tmp_path, "target")


def following(commands: Commands, *arguments: str) -> AbstractContextManager[Running]:
    return commands.start("copy", "--follow", *arguments, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_file_that_is_followed_is_copied_up_to_the_signal(
    commands: Commands, tmp_path: Path, target: Path, number: int
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"first\n")
    source.chmod(0o640)
    with following(commands, str(source), str(target)) as copying, source.open("ab", buffering=0) as file:
        for number_of_line in range(3):
            await_true(is_begun(tmp_path))
            file.write(b"line %d\nhalf" % number_of_line)
            time.sleep(0.4)
        assert not target.exists()
        copying.send_signal(number)
        assert copying.wait(20) == 0
    assert target.read_bytes() == source.read_bytes() == b"first\nline 0\nhalfline 1\nhalfline 2\nhalf"
    assert target.stat().st_mode & 0o777 == 0o640
    assert is_clean(commands, tmp_path, "source", "target")


def test_a_followed_file_ends_where_it_ended_at_the_signal_although_it_grows(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"first")
    with source.open("rb", buffering=0) as file:
        followed = FollowedFile(file, lambda: True)
        assert followed.read(3) == b"fir"
        source.write_bytes(b"first and more")
        assert followed.read(100) == b"st"
        assert followed.read(100) == b""


def test_lines_of_a_followed_file_are_sent_as_they_are_written(commands: Commands, tmp_path: Path) -> None:
    source, texts = tmp_path / "source", ["first"]
    source.write_bytes(b"first\n")

    def sent() -> list[str]:
        return [message.text for message in commands.client.peek()]

    with following(commands, "--produce", str(source), "--queue", commands.queue) as producing:
        for text in ("second", "third"):
            await_true(lambda: sent() == ["", *texts])
            texts.append(text)
            with source.open("a") as file:
                file.write(f"{text}\n")
        await_true(lambda: sent() == ["", *texts])
        producing.send_signal(signal.SIGTERM)
        assert producing.wait(20) == 0
    assert sent() == ["", "first", "second", "third", ""]


def test_a_followed_file_that_is_truncated_is_not_copied(commands: Commands, tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(lines(10))
    with following(commands, str(source), str(target)) as copying:
        await_true(is_begun(tmp_path))
        os.truncate(source, 5)
        assert copying.wait(20) == 1
        assert copying.stderr is not None
        assert copying.stderr.read().decode() == (
            f"queue-service: {source}: was truncated while it was being copied; run the copy again\n"
        )
    assert is_clean(commands, tmp_path, "source")


@pytest.mark.parametrize("mode", [0o600, 0o755, 0o444])
def test_a_new_target_has_the_mode_of_its_source(commands: Commands, tmp_path: Path, target: Path, mode: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"a\n")
    source.chmod(mode)
    assert commands.output("copy", str(source), str(target)) == ""
    assert target.stat().st_mode & 0o777 == mode


def test_the_mode_goes_through_both_halves(commands: Commands, tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"a\n")
    source.chmod(0o750)
    commands.output("copy", "--produce", str(source), "--queue", commands.queue)
    commands.output("copy", "--consume", str(target), "--queue", commands.queue)
    assert target.stat().st_mode & 0o777 == 0o750


def test_the_copy_of_a_pipe_has_the_mode_of_a_new_file(commands: Commands, target: Path) -> None:
    commands.shell(f"umask 027; echo a | $Q copy - {target}")
    assert target.stat().st_mode & 0o777 == 0o640


def test_an_unfinished_copy_is_readable_by_its_owner_only(commands: Commands, tmp_path: Path, target: Path) -> None:
    with commands.start("copy", "-", str(target)) as copying:
        assert copying.stdin is not None
        copying.stdin.write(lines(20_000))
        copying.stdin.flush()
        await_true(is_begun(tmp_path))
        (part,) = tmp_path.glob("*.part")
        assert part.stat().st_mode & 0o777 == 0o600
        copying.communicate(b"", timeout=20)


def test_a_target_that_is_a_pipe_is_refused(commands: Commands) -> None:
    line = "$Q copy LICENSE >(cat) 2>&1 | grep -o 'exists and is not a regular file'"
    assert commands.shell(line) == "exists and is not a regular file\n"
