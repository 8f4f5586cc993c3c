"""Test file copies through a real service: identical after any kill, or a clear failure."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients import QueueClient, copy_file
from clients.copying import consumer
from clients.copying import source as copy_source
from clients.copying.plan import CopyError, Plan
from clients.copying.source import Lines
from clients.copying.target import Target
from tests.support.figures import AddRow
from tests.support.live import REPOSITORY, LiveServer, await_true

LONG = [pytest.mark.slow, pytest.mark.torture]
CONTENTS = {
    "empty": b"",
    "one newline": b"\n",
    "no final newline": b"a\nb",
    "only newlines": b"\n" * 2500,
    "CRLF": b"a\r\nb\r\n\r\n",
    "bare CR": b"a\rb\r",
    "NEL, LS, PS, FF, VT and FS inside lines": "a\x85b\u2028c\u2029d\fe\vf\x1cg\n".encode() * 3,
    "NULs": b"\0\n\0\0" + b"\0" * 1_000_000,
    "not UTF-8": b"\xff\xfe\n\x80\nok\n\xed\xa0\x80\n\xc3",
    "every byte": bytes(range(256)) * 300,
    "BOM": b"\xef\xbb\xbfa\n",
    "lines that look like commands": b'exit\n{"end": true}\n{"text": "x", "attributes": {"end": true}}\nEOF\n',
    "a 5 MB line": ("é€😀x" * 520_000).encode() + b"\nshort\n",
    "a 2 MB line that is not UTF-8": b"\xa0\x00" * 1_000_000,
    "a line of just the longest piece": b"x" * copy_source.LONGEST_PIECE + b"\n" + b"y" * copy_source.LONGEST_PIECE,
    "many short lines": b"".join(b"line %d\n" % n for n in range(12_345)),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def copy(server: LiveServer, source: Path, target: Path, *options: str) -> int:
    return copy_file.main([str(source), str(target), "--url", server.url, "--lease", "1", *options])


def started(server: LiveServer, *arguments: str | Path, lease: str = "1") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "clients.copy_file", *map(str, arguments), "--url", server.url, "--lease", lease]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)


def lines(count: int) -> bytes:
    return b"".join(b"%07d %s\n" % (n, b"-" * 52) for n in range(count))


def copy_queues(server: LiveServer) -> list[str]:
    with QueueClient(server.url) as client:
        return [name for name in client.queues() if name.startswith("copy")]


# File contents.


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_copy_is_identical(server: LiveServer, source: Path, target: Path, content: bytes) -> None:
    source.write_bytes(content)
    assert copy(server, source, target) == 0
    assert target.read_bytes() == content
    assert sorted(os.listdir(target.parent)) == ["source", "target"]
    assert copy_queues(server) == []


def test_an_ordinary_line_becomes_the_message_text(server: LiveServer, source: Path, queue: str) -> None:
    source.write_bytes("one\n two é\r\n\nlast".encode())
    assert copy_file.main(["--produce", str(source), "--url", server.url, "--queue", queue]) == 0
    with QueueClient(server.url, queue=queue) as client:
        messages = client.peek()[1:-1]
    assert [message.text for message in messages] == ["one", " two é\r", "", "last"]
    assert [message.attributes["offset"] for message in messages] == [0, 4, 13, 14]


@pytest.mark.parametrize("batch", ["1", "3", "10000"])
def test_the_size_of_batches_makes_no_difference(server: LiveServer, source: Path, target: Path, batch: str) -> None:
    source.write_bytes(lines(30))
    assert copy(server, source, target, "--batch", batch) == 0
    assert target.read_bytes() == lines(30)


def test_the_same_copy_can_be_made_again_at_once(server: LiveServer, source: Path, target: Path) -> None:
    source.write_bytes(lines(10))
    for _ in range(3):
        assert copy(server, source, target) == 0
        assert target.read_bytes() == lines(10)
        target.unlink()


class _Bytes(io.BytesIO):
    """A file that returns its bytes in pieces of any size, as a slow disk may."""

    def __init__(self, content: bytes, sizes: Iterator[int]) -> None:
        super().__init__(content)
        self._sizes = sizes

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(next(self._sizes), sys.maxsize if size is None or size < 0 else size))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    content=st.lists(
        st.sampled_from([b"\n", b"a", "é".encode(), "€".encode(), "😀".encode(), b"\xff", b"\xa9"] * 2)
    ).map(b"".join),
    sizes=st.lists(st.integers(1, 7), min_size=1),
    longest=st.integers(4, 9),
)
def test_bytes_are_cut_into_the_same_messages_however_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    sizes: list[int],
    longest: int,
) -> None:
    monkeypatch.setattr(copy_source, "LONGEST_PIECE", longest)
    forever = (size for _ in iter(int, 1) for size in sizes)
    lines = all_of(copy_source.cut(_Bytes(content, forever), len(content), hashlib.sha256()))
    assert lines == all_of(copy_source.cut(io.BytesIO(content), len(content), hashlib.sha256()))
    assert sum(lines.sizes) == len(content)
    assert lines.offsets == [0, *accumulate(lines.sizes)][: len(lines)]


def all_of(cut: Iterator[Lines]) -> Lines:
    whole = Lines()
    for lines in cut:
        whole.add(lines, 0, len(lines))
    return whole


# Errors are reported in one line and leave the target unchanged.


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line on stderr."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_an_existing_target_is_replaced_and_keeps_its_mode(server: LiveServer, source: Path, target: Path) -> None:
    source.write_bytes(b"new\n")
    target.write_bytes(b"old, and longer than the new one\n")
    target.chmod(0o640)
    assert copy(server, source, target) == 0
    assert target.read_bytes() == b"new\n"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_target_that_is_a_symbolic_link_is_followed(
    server: LiveServer, source: Path, target: Path, tmp_path: Path
) -> None:
    source.write_bytes(b"new\n")
    target.symlink_to(tmp_path / "elsewhere")
    assert copy(server, source, target) == 0
    assert target.is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"new\n"


def test_a_missing_source_is_reported(
    server: LiveServer, source: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target.write_bytes(b"as it was")
    assert copy(server, source, target) == 1
    assert error_line(capsys) == f"copy_file: {source}: No such file or directory"
    assert target.read_bytes() == b"as it was"


def test_a_target_in_a_missing_directory_is_reported(
    server: LiveServer, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_bytes(b"x\n")
    assert copy(server, source, tmp_path / "nowhere" / "target") == 1
    missing = f"copy_file: {tmp_path}/nowhere/target: there is no directory {tmp_path}/nowhere"
    assert error_line(capsys) == missing
    assert copy_queues(server) == []
    assert copy_file.main(["--consume", str(tmp_path / "nowhere" / "target"), "--url", server.url]) == 1
    assert error_line(capsys) == missing  # at once, without a wait for a producer


def test_a_directory_is_refused_as_source_and_as_target(
    server: LiveServer, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_bytes(b"x\n")
    assert copy(server, tmp_path, tmp_path / "target") == 1
    assert error_line(capsys) == f"copy_file: {tmp_path}: neither a regular file nor a pipe"
    assert copy(server, source, tmp_path) == 1
    assert error_line(capsys) == f"copy_file: {tmp_path}: exists and is not a regular file"
    assert copy(server, source, source) == 1
    assert error_line(capsys) == f"copy_file: {source} and {source} are the same file"


def test_an_unreachable_service_is_reported_soon(
    source: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_bytes(b"x\n")
    assert copy_file.main([str(source), str(target), "--url", "http://127.0.0.1:1", "--retry-for", "0"]) == 69
    assert error_line(capsys) == "copy_file: http://127.0.0.1:1 does not answer: connection refused"
    assert not target.exists()


def test_a_queue_with_other_messages_is_left_alone(
    server: LiveServer, source: Path, target: Path, queue: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_bytes(b"x\n")
    with QueueClient(server.url, queue=queue) as client:
        client.send("precious")
        assert copy(server, source, target, "--queue", queue) == 1
        assert error_line(capsys) == f"copy_file: queue '{queue}' contains messages that do not belong to a file copy"
        assert [message.text for message in client.receive()] == ["precious"]


def test_lines_corrupted_in_the_queue_never_become_the_target(
    server: LiveServer, source: Path, target: Path, queue: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_bytes(b"one\ntwo\n")
    target.write_bytes(b"as it was")
    options = ["--url", server.url, "--queue", queue]
    assert copy_file.main(["--produce", str(source), *options]) == 0
    with QueueClient(server.url, queue=queue) as client:
        client.receive()  # one line is missing
    assert copy_file.main(["--consume", str(target), *options]) == 1
    assert "are not the 8 bytes that were sent" in error_line(capsys)
    assert target.read_bytes() == b"as it was"
    assert sorted(os.listdir(target.parent)) == ["source", "target"]


def test_a_copy_whose_messages_another_client_read_fails_clearly(
    server: LiveServer,
    source: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source.write_bytes(lines(10))
    monkeypatch.setattr(copy_file, "produce", lambda *_: None)  # the consumer sees all messages sent and acked
    assert copy(server, source, target) == 1
    assert error_line(capsys).endswith("was deleted, or read by another client, during the copy")
    assert os.listdir(target.parent) == ["source"]


@pytest.mark.parametrize(
    "change",
    [
        lambda source: os.utime(source, ns=(0, 0)),
        lambda source: os.truncate(source, 5),
        lambda source: source.write_bytes(lines(11).replace(b"0000001", b"changed")),
    ],
    ids=["touched", "shorter", "changed and longer"],
)
def test_a_file_that_changes_while_it_is_sent_is_not_copied(source: Path, change: Callable[[Path], None]) -> None:
    source.write_bytes(lines(10))
    plan = Plan.of(str(source), None, 3)
    with source.open("rb") as file:
        batches = copy_source.batches(file, plan)
        next(batches)
        change(source)
        with pytest.raises(CopyError, match="changed while it was being copied"):
            list(batches)


@contextmanager
def on_first_write(change: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the change when the first received lines are about to be written."""
    left = [change]
    write = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if left:
            left.pop()()
        return write(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        yield


def test_a_file_that_grows_is_copied_as_it_was_when_the_copy_began(
    server: LiveServer, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = lines(40_000) + b"half a li"
    source.write_bytes(content)

    def grow() -> None:
        with source.open("ab") as file:
            file.write(b"ne\nand more\n")

    with on_first_write(grow, monkeypatch):
        assert copy(server, source, target) == 0
    assert target.read_bytes() == content
    assert sorted(os.listdir(target.parent)) == ["source", "target"]
    assert copy_queues(server) == []


def test_a_file_that_grows_constantly_is_copied(server: LiveServer, source: Path, target: Path) -> None:
    source.write_bytes(lines(1000))
    stopped = threading.Event()

    def grow() -> None:
        with source.open("ab", buffering=0) as file:
            while not stopped.wait(0.001):
                file.write(b"another\n")

    growing = threading.Thread(target=grow)
    growing.start()
    try:
        assert copy(server, source, target, "--batch", "100") == 0
    finally:
        stopped.set()
        growing.join()
    assert source.read_bytes().startswith(target.read_bytes())
    assert target.read_bytes().startswith(lines(1000))


def test_a_copy_whose_file_was_changed_leaves_nothing_behind(
    server: LiveServer,
    source: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source.write_bytes(lines(40_000))
    with on_first_write(lambda: os.truncate(source, 100), monkeypatch):
        assert copy(server, source, target) == 1
    assert error_line(capsys) == f"copy_file: {source}: changed while it was being copied; run the copy again"
    assert os.listdir(target.parent) == ["source"]
    assert copy_queues(server) == []


def test_a_consumer_whose_producer_failed_ends_and_leaves_nothing_behind(
    server: LiveServer, source: Path, target: Path, queue: str
) -> None:
    source.write_bytes(lines(8_000))
    consuming = started(server, "--consume", target, "--queue", queue)
    producing = started(server, "--produce", source, "--queue", queue, "--batch", "20")
    await_true(lambda: any(part.stat().st_size for part in target.parent.glob("*.part")))
    os.utime(source, ns=(0, 0))
    _, errors = producing.communicate(timeout=60)
    assert "changed while it was being copied" in errors.decode()
    _, errors = consuming.communicate(timeout=20)
    assert errors.decode().endswith("was deleted, or read by another client, during the copy\n")
    assert (producing.returncode, consuming.returncode) == (1, 1)
    assert os.listdir(target.parent) == ["source"]
    with QueueClient(server.url) as client:
        assert queue not in client.queues()


def test_two_copies_to_one_target_do_not_mix(
    server: LiveServer, source: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_bytes(lines(10))
    plan = Plan.of(str(source), str(target), copy_file.BATCH)
    running = Target(str(target), plan.id)
    try:
        assert copy(server, source, target) == 1
        assert error_line(capsys) == f"copy_file: {target}: another copy to it is running"
    finally:
        running.close()
    assert copy(server, source, target) == 0


# Kills and restarts.


def kill_soon(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()


CUT_OFF = "waiting for lines that an interrupted run has leased; they come when its lease ends"


def printed_by(process: subprocess.Popen[bytes]) -> list[str]:
    """Run a copy, which must succeed; return what it printed."""
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    return [line.removeprefix("copy_file: ") for line in errors.decode().splitlines()]


def test_a_copy_killed_at_random_and_run_again_is_identical__row_2(
    server: LiveServer, source: Path, target: Path
) -> None:
    content = lines(40_000)
    source.write_bytes(content)
    for _ in range(4):
        kill_soon(started(server, source, target), random.uniform(0.2, 0.9))
    assert set(printed_by(started(server, source, target))) <= {CUT_OFF}
    assert target.read_bytes() == content
    assert sorted(os.listdir(target.parent)) == ["source", "target"]
    assert copy_queues(server) == []


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=LONG)])
def test_a_copy_is_identical_after_kills_of_producer_consumer_and_service__row_2(
    kills: int, source: Path, target: Path, add_row: AddRow
) -> None:
    """Kill each at random and run the same command again. After a complete copy, start another one."""
    content = lines(20_000)
    source.write_bytes(content)
    halves = {"producer": ("--produce", source), "consumer": ("--consume", target)}
    hit, wrong, copies = Counter[str](), Counter[str](), 0
    with LiveServer() as server:
        while hit.total() < kills:
            target.unlink(missing_ok=True)
            copies += 1
            queue = ("--queue", f"copy-{copies}")
            running = {name: started(server, *half, *queue) for name, half in halves.items()}
            while not target.exists() and hit.total() < kills:
                time.sleep(random.uniform(0.1, 0.5))
                victim = random.choice(["producer", "consumer", "service"])
                hit[victim] += 1
                if victim == "service":
                    server.restart()
                    continue
                running[victim].kill()
                running[victim].wait()
                if not target.exists():  # otherwise another consumer would wait for another copy
                    running[victim].communicate()
                    running[victim] = started(server, *halves[victim], *queue)
            _, errors = running["consumer"].communicate(timeout=60)
            assert running["consumer"].returncode in (0, -signal.SIGKILL), errors
            kill_soon(running["producer"], 10)  # a consumer started after the end waits for another copy
            wrong += compared(content.splitlines(), target.read_bytes().splitlines())
            assert target.read_bytes() == content
    killed = ", ".join(f"{count} {name}" for name, count in sorted(hit.items()))
    columns = ("lost", "unexpected", "duplicated", "disordered")
    add_row(
        fault=f"kill -9 of {killed} while files are copied", times=kills, acknowledged=copies * 20_000,
        **{name: wrong[name] for name in columns},
    )  # fmt: skip


def compared(sent: list[bytes], there: list[bytes]) -> Counter[str]:
    """Compare the lines of target and source, where each line is unique."""
    known = set(sent)
    return Counter(
        lost=len(known - set(there)),
        unexpected=sum(line not in known for line in there),
        duplicated=len(there) - len(set(there)),
        disordered=there != sorted(there),
    )


def test_both_halves_killed_at_random_and_run_again_are_identical__row_2(
    server: LiveServer, source: Path, target: Path, queue: str
) -> None:
    content = lines(40_000)
    source.write_bytes(content)
    halves = [("--produce", source, "--queue", queue), ("--consume", target, "--queue", queue)]
    running = [started(server, *half) for half in halves]
    for _ in range(4):
        time.sleep(random.uniform(0.2, 0.6))
        victim = random.randrange(2)
        running[victim].kill()
        running[victim].wait()
        if target.exists():  # complete already: another consumer would wait for the next copy
            break
        running[victim].communicate()
        running[victim] = started(server, *halves[victim])
    assert all(half.communicate(timeout=30) and half.returncode in (0, -signal.SIGKILL) for half in running)
    assert target.read_bytes() == content


def test_a_copy_outlives_kills_of_the_service__row_2(source: Path, target: Path) -> None:
    content = lines(60_000)
    source.write_bytes(content)
    with LiveServer() as server:
        copying = started(server, source, target)
        for _ in range(3):
            time.sleep(random.uniform(0.3, 0.8))
            server.restart()
        printed_by(copying)
    assert target.read_bytes() == content


def test_after_a_kill_right_after_the_rename_the_next_run_sees_the_complete_copy(
    server: LiveServer, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.write_bytes(lines(10))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clients.copying.consumer.clear_away", killed)
        assert copy(server, source, target) == 130
    assert len(copy_queues(server)) == 1
    inode = target.stat().st_ino
    assert copy(server, source, target) == 0
    assert target.stat().st_ino == inode  # not written again
    assert copy_queues(server) == []
    assert sorted(os.listdir(target.parent)) == ["source", "target"]


def test_a_source_that_changed_after_a_kill_is_copied_as_it_is_now(
    server: LiveServer, source: Path, target: Path
) -> None:
    source.write_bytes(lines(40_000))
    others = server.connections()  # that other tests keep
    kill_soon(started(server, source, target), 0.6)
    server.await_unconnected(others)
    source.write_bytes(b"another\n")
    assert copy(server, source, target) == 0
    assert target.read_bytes() == b"another\n"
    assert sorted(os.listdir(target.parent)) == ["source", "target"]
    assert copy_queues(server) == []


def test_a_wait_for_lines_leased_to_an_interrupted_run_is_reported(
    server: LiveServer, source: Path, target: Path, queue: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_bytes(lines(10))
    options = ["--url", server.url, "--queue", queue]
    assert copy_file.main(["--produce", str(source), *options]) == 0
    with QueueClient(server.url, queue=queue) as client:
        client.receive(limit=3, lease=1.5)
    assert copy_file.main(["--consume", str(target), *options]) == 0
    assert error_line(capsys) == f"copy_file: {CUT_OFF}"
    assert target.read_bytes() == lines(10)


def test_a_consumer_can_start_before_its_producer(server: LiveServer, source: Path, target: Path, queue: str) -> None:
    source.write_bytes(lines(10))
    consuming = started(server, "--consume", target, "--queue", queue)
    assert consuming.stderr is not None
    assert (
        consuming.stderr.readline().decode() == f"copy_file: waiting for a producer: queue '{queue}' has no lines yet\n"
    )
    assert printed_by(started(server, "--produce", source, "--queue", queue)) == []
    assert printed_by(consuming) == []
    assert target.read_bytes() == lines(10)


def test_a_consumer_whose_producer_stopped_sending_reports_what_is_missing(
    server: LiveServer, source: Path, target: Path, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.write_bytes(lines(10))
    plan = Plan.of(str(source), None, 4)
    monkeypatch.setattr(consumer, "LONG_QUIET", 0.1)
    words: SimpleQueue[str] = SimpleQueue()
    with QueueClient(server.url, queue=queue) as client, source.open("rb") as file, ThreadPoolExecutor(1) as pool:
        first, *rest = copy_source.batches(file, plan)
        client.send_encoded(*first.encoded())
        consuming = pool.submit(consumer.consume, client, str(target), 100, 5, lambda size: None, words.put)
        assert words.get(timeout=10).startswith("waiting for the rest: the producer has not sent the end of the file")
        for batch in rest:
            client.send_encoded(*batch.encoded())
        consuming.result(10)
    assert target.read_bytes() == lines(10)


def test_both_halves_can_start_before_the_service(
    source: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_bytes(lines(10))
    server = LiveServer()
    halves = [[half, str(path), "--url", server.url] for half, path in (("--produce", source), ("--consume", target))]
    with ThreadPoolExecutor(2) as pool:
        running = pool.map(copy_file.main, halves)
        time.sleep(0.3)
        with server:
            assert list(running) == [0, 0]
    words = set(capsys.readouterr().err.splitlines())
    assert f"copy_file: {server.url} does not answer: connection refused; retrying for up to 30 s" in words
    assert target.read_bytes() == lines(10)


def interrupted(server: LiveServer, target: Path, *arguments: str | Path) -> list[str]:
    """Interrupt a copy with a long lease, and return what it printed."""

    def written() -> int:
        return sum(part.stat().st_size for part in target.parent.glob("*.part"))

    before = written()
    copying = started(server, *arguments, lease="600")
    while written() == before:
        assert copying.poll() is None
        time.sleep(0.001)
    copying.send_signal(signal.SIGINT)
    _, errors = copying.communicate(timeout=10)
    assert copying.returncode == 130
    return errors.decode().splitlines()


def test_an_interrupted_copy_says_so_and_the_next_run_continues_without_waiting(
    server: LiveServer, source: Path, target: Path
) -> None:
    source.write_bytes(lines(40_000))
    for _ in range(2):
        words = interrupted(server, target, source, target)
        assert words == ["copy_file: interrupted; run the same command to continue"]
    assert printed_by(started(server, source, target)) == []
    assert target.read_bytes() == lines(40_000)


def test_an_interrupted_consumer_leaves_nothing_leased(
    server: LiveServer, source: Path, target: Path, queue: str
) -> None:
    source.write_bytes(lines(20_000))
    assert printed_by(started(server, "--produce", source, "--queue", queue)) == []
    interrupted(server, target, "--consume", target, "--queue", queue)
    with QueueClient(server.url, queue=queue) as client:
        assert client.stats()["leased"] == 0
    assert printed_by(started(server, "--consume", target, "--queue", queue)) == []
    assert target.read_bytes() == lines(20_000)


def test_an_error_of_the_consumer_stops_the_producer_at_once(
    server: LiveServer, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_bytes(lines(5000))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "pwrite", full)
    assert copy(server, source, target, "--batch", "100") == 1
    assert error_line(capsys) == f"copy_file: {target}: No space left on device"
    deadline = time.monotonic() + 5
    while any(thread.name == "copy-producer" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_symbolic_link_named_like_the_part_file_is_not_followed(
    server: LiveServer, source: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_bytes(lines(10))
    plan = Plan.of(str(source), str(target), copy_file.BATCH)
    Path(f"{target}.{plan.id}.part").symlink_to(source)
    assert copy(server, source, target) == 1
    assert "symbolic link" in error_line(capsys)
    assert source.read_bytes() == lines(10)
    assert not target.exists()


def test_a_token_that_cannot_delete_the_queue_can_still_copy(
    source: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_bytes(lines(2_000))
    secret = "0123456789abcdef"
    with LiveServer({"QUEUE_TOKENS": f"worker:{secret}:send,receive:*"}) as server:
        for _ in range(2):  # the second run finds a complete copy
            assert copy(server, source, target, "--token", secret) == 0
            assert "stays: the token 'worker' lacks the right admin" in capsys.readouterr().err
    assert target.read_bytes() == source.read_bytes()
