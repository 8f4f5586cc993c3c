"""Test the order in which a file copy writes, syncs, acks, renames and deletes.

The copy runs in a process that records its system calls, so a missing step fails a test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clients.column_batches import messages_of
from tests.support.live import REPOSITORY, LiveServer

LINE = b"%07d " + b"-" * 55 + b"\n"
SIZE = len(LINE % 0)
COUNT = 5_000

Event = tuple[str, Any]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"".join(LINE % number for number in range(COUNT)))
    return path


def copied(server: LiveServer, source: Path, target: Path, *options: str) -> list[Event]:
    """Run a copy in its own process; return its calls in order, each with its argument."""
    log = source.parent.parent / "calls"
    command = [sys.executable, "-m", "tests.clients.recorded", str(log), *options, str(source), str(target), server.url]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=60)
    assert target.read_bytes() == source.read_bytes()
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()]


def test_no_line_is_acked_before_it_is_synced(server: LiveServer, source: Path, tmp_path: Path) -> None:
    written = synced = acked = 0
    for call, argument in copied(server, source, tmp_path / "target"):
        if call == "pwrite":
            written += argument
        elif call in ("fdatasync", "fsync"):
            synced = written
        elif call == "ack":
            acked += messages_of(argument)
            assert acked * SIZE <= synced
    assert acked == COUNT


def test_a_finished_copy_is_synced_renamed_and_its_folder_synced_before_the_queue_is_deleted(
    server: LiveServer, source: Path, tmp_path: Path
) -> None:
    events = copied(server, source, tmp_path / "target")
    renamed = next(place for place, (call, _) in enumerate(events) if call == "rename")
    last_written = max(place for place, (call, _) in enumerate(events) if call in ("pwrite", "ftruncate"))
    (deleted,) = [place for place, (call, _) in enumerate(events) if call == "delete"]
    assert last_written < events.index(("fsync", "target.part"), last_written) < renamed
    assert renamed < events.index(("fsync", "folder"), renamed) < deleted


def test_the_folder_of_a_new_part_file_is_synced_before_a_line_is_acked(
    server: LiveServer, source: Path, tmp_path: Path
) -> None:
    events = copied(server, source, tmp_path / "target")
    first_ack = next(place for place, (call, _) in enumerate(events) if call == "ack")
    assert events.index(("fsync", "folder")) < first_ack


def test_a_partial_write_is_continued(server: LiveServer, source: Path, tmp_path: Path) -> None:
    events = copied(server, source, tmp_path / "target", "--short")
    assert sum(size for call, size in events if call == "pwrite") == COUNT * SIZE
    assert os.listdir(source.parent) == ["source"] or sorted(os.listdir(source.parent)) == ["source", "target"]
