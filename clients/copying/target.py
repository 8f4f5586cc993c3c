"""The consuming half of a file copy: lines written at their offsets beside the target, checked, and put in its place.

Why it is right, wherever it is killed. A batch is acked only after its bytes are on disk (fsync), so whatever is no
longer in the queue is in the .part file; whatever is leased to a killed run comes back when its lease ends, and to
write it again at its offset changes nothing. The .part file carries the copy's id in its name, so lines of two copies
never meet in one file, and is locked, so that one run at a time writes to it. Nothing but the check of all its bytes
against the end mark's SHA-256 lets it become the target, by an atomic rename. The queue is deleted after that; a run
killed in between leaves an end mark and a target that already is right, which the next run sees by the same SHA-256.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import itertools
import operator
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from ..column_batches import ColumnBatch
from .plan import CopyError, EndMark


class Target:
    """The file being made: `path`.{copy}.part until `finish`. Raises CopyError, OSError."""

    def __init__(self, path: str, copy: str) -> None:
        self.path = os.path.realpath(path)
        self.copy = copy
        self.part = f"{self.path}.{copy}.part"
        check_target(path)
        self.is_new = not os.path.exists(self.part)
        self._file = _open_locked(self.part)
        if self._file is None:
            raise CopyError(f"{path}: another copy to it is running")
        _sync_directory(self.path)

    def write(self, runs: Iterable[ColumnBatch]) -> int:
        """The runs' lines are on disk at their offsets; how many bytes that was."""
        total = 0
        for run in runs:
            lines, offsets = _lines(run)
            for start, end in _stretches(offsets, lines):
                data = b"".join(lines[start:end])
                self._write_at(offsets[start], data)
                total += len(data)
        if total:
            os.fdatasync(self._descriptor)
        return total

    def start_afresh(self) -> None:
        """Nothing has been written yet."""
        os.ftruncate(self._descriptor, 0)

    def is_in_place(self, size: int, sha256: str) -> bool:
        """Whether the target itself already has this content."""
        try:
            with open(self.path, "rb") as file:
                return os.fstat(file.fileno()).st_size == size and digest_of(file.fileno()) == sha256
        except FileNotFoundError:
            return False

    def finish(self, end: EndMark) -> None:
        """The target has the content that the end mark tells of, for good; or CopyError, and it is untouched."""
        os.ftruncate(self._descriptor, end.size)
        if digest_of(self._descriptor) == end.sha256:
            self._put_in_place()
        elif self.is_in_place(end.size, end.sha256):  # a run was killed between its rename and its end
            self.discard()
        else:
            self.discard()
            raise CopyError(
                f"{self.path}: the lines received are not the {end.size} bytes that were sent; "
                "the target is unchanged, run the copy again"
            )

    def discard(self) -> None:
        """Remove the .part file."""
        with suppress(FileNotFoundError):
            os.unlink(self.part)
        self._release()

    def close(self) -> None:
        """Another run may go on with the .part file; an empty one is removed."""
        if self._file is not None and os.fstat(self._file).st_size == 0:
            self.discard()
        self._release()

    def discard_others(self) -> list[str]:
        """Unfinished copies to the same target which nobody works on are gone; the id of each."""
        directory, name = os.path.split(self.path)
        discarded = []
        for other in os.listdir(directory):
            match = re.fullmatch(re.escape(name) + r"\.([0-9a-f]{12})\.part", other)
            if match is None or match[1] == self.copy:
                continue
            path = os.path.join(directory, other)
            descriptor = _open_locked(path)
            if descriptor is not None:
                os.unlink(path)
                os.close(descriptor)
                discarded.append(match[1])
        return discarded

    @property
    def _descriptor(self) -> int:
        assert self._file is not None, "closed"
        return self._file

    def _put_in_place(self) -> None:
        if os.path.exists(self.path):
            os.fchmod(self._descriptor, stat.S_IMODE(os.stat(self.path).st_mode))
        os.fsync(self._descriptor)
        os.rename(self.part, self.path)
        _sync_directory(self.path)
        self._release()

    def _release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write_at(self, offset: int, data: bytes) -> None:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._descriptor, left, offset)
            left, offset = left[written:], offset + written


def check_target(path: str) -> None:
    """Raises CopyError for a path that cannot become a file."""
    real = os.path.realpath(path)
    if os.path.exists(real) and not stat.S_ISREG(os.stat(real).st_mode):
        raise CopyError(f"{path}: exists and is not a regular file")
    if not os.path.isdir(os.path.dirname(real)):
        raise CopyError(f"{path}: there is no directory {os.path.dirname(real)}")


def digest_of(descriptor: int, size: int = sys.maxsize) -> str:
    """SHA-256 of an open file, or of its first `size` bytes, in hex."""
    digest, offset = hashlib.sha256(), 0
    while block := os.pread(descriptor, min(1024 * 1024, size - offset), offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def _lines(run: ColumnBatch) -> tuple[list[bytes], list[int]]:
    """A run's lines and their offsets. Raises CopyError for one that is of no file copy."""
    offsets: list[Any] = run.attributes.get("offset", [])
    if len(offsets) != len(run) or set(map(type, offsets)) != {int} or min(offsets) < 0 or max(offsets) >= 2**62:
        raise CopyError(f"message {run.id}, or one after it, does not belong to a file copy: it has no offset")
    if len(run.attributes) == 1:
        return [text.encode() + b"\n" for text in run.texts], offsets
    encodings, newlines = (run.attributes.get(name, [None] * len(run)) for name in ("encoding", "newline"))
    lines = []
    for text, encoding, newline in zip(run.texts, encodings, newlines, strict=True):
        data = base64.b64decode(text) if encoding == "base64" else text.encode()
        lines.append(data if newline is False else data + b"\n")
    return lines, offsets


def _stretches(offsets: list[int], lines: list[bytes]) -> Iterator[tuple[int, int]]:
    """The places between which lines lie one behind the other in the file; mostly they all do."""
    ends = list(map(operator.add, offsets, map(len, lines)))
    breaks = [] if offsets[1:] == ends[:-1] else [n for n in range(1, len(lines)) if offsets[n] != ends[n - 1]]
    yield from itertools.pairwise([0, *breaks, len(lines)])


def _open_locked(path: str) -> int | None:
    """The file, made if it is not there and locked against other runs; None when one of them has it."""
    while True:
        # No symbolic link is followed: it could be one to the source, or to anything of ours.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and lock another run may have finished: then this is no longer the .part file.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _sync_directory(path: str) -> None:
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
