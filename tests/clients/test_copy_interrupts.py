"""An interrupt of a copy at any instruction: nothing stays leased, and the next run completes the copy."""

from __future__ import annotations

import dis
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from clients import QueueClient
from clients.copy_file import main
from clients.copying.consumer import consume
from clients.copying.plan import Plan, totals
from clients.fetching import Fetcher
from tests.support.live import LiveServer

DENSE = range(1, 200, 2)  # the first instructions, while the first read is under way
SPREAD = 80
BATCH = 100
NOT_TAKEN = dis.opmap.get("NOT_TAKEN")  # of Python 3.14: nothing is raised there, so no handler covers it
CONTENT = b"".join(b"%d\n" % n for n in range(300))


class Interrupt:
    """Raises KeyboardInterrupt in the calling thread, before one instruction between a copy's first read and its end.

    Python handles a signal between two instructions, mostly at the end of a call; this is at least as strict.
    """

    def __init__(self, at: int) -> None:
        self.instructions = 0
        self._at = at
        self._reads = False

    def trace(self, frame: FrameType, event: str, _: Any) -> Callable[[FrameType, str, Any], Any] | None:
        frame.f_trace_opcodes = True
        if frame.f_code is Fetcher.ask.__code__:
            self._reads = True
        elif frame.f_code is consume.__code__ and event == "return":
            self._reads = False
        elif self._reads and event == "opcode":
            self.instructions += 1
            if 0 < self._at <= self.instructions and frame.f_code.co_code[frame.f_lasti] != NOT_TAKEN:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace


def interrupted_copy(server: LiveServer, source: Path, target: Path, at: int) -> tuple[int, Interrupt]:
    interrupt = Interrupt(at)
    options = ["--url", server.url, "--batch", str(BATCH), "--lease", "600"]
    sys.settrace(interrupt.trace)
    try:
        code = main([str(source), str(target), *options])
    finally:
        sys.settrace(None)
    return code, interrupt


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the process would end: open sockets
@pytest.mark.slow
def test_an_interrupt_at_any_instruction_leaves_nothing_leased(server: LiveServer, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(CONTENT)
    queue = Plan.of(str(source), str(target), BATCH).queue
    code, uninterrupted = interrupted_copy(server, source, target, at=0)
    assert code == 0
    for at in (*DENSE, *range(DENSE.stop, uninterrupted.instructions, uninterrupted.instructions // SPREAD)):
        target.unlink()
        code, _ = interrupted_copy(server, source, target, at)
        with QueueClient(server.url, queue=queue) as client:
            counts = totals(client)
        assert not counts or counts["leased"] == 0, f"{counts} after an interrupt at instruction {at}, exit code {code}"
        assert code in (0, 130), f"exit code {code} after an interrupt at instruction {at}"
        if code:
            code, _ = interrupted_copy(server, source, target, at=0)
            assert code == 0
        assert target.read_bytes() == CONTENT
    gc.collect()
