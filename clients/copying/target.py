"""The target of a file copy: write lines at their offsets to a .part file, check it, and rename it to the target.

Why a kill at any point does no harm. A batch is acked only after its bytes are on disk (fsync), so all lines that left
the queue are in the .part file. Lines leased by a killed run are redelivered when the lease ends, and to write them
again at their offsets changes nothing. The name of the .part file has the copy's id, so it never mixes two copies. A
lock lets one run at a time write to it. It is renamed to the target only if its SHA-256 is that of the end mark. The
queue is deleted after that. A run killed in between leaves an end mark and a complete target; the next run compares
the SHA-256.
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
    """The file to write, named `path`.{copy}.part until `finish`. Raises CopyError, OSError."""

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
        """Write the runs' lines to disk at their offsets; return the number of bytes."""
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
        """Drop all that was written."""
        os.ftruncate(self._descriptor, 0)

    def is_in_place(self, size: int, sha256: str) -> bool:
        """Return whether the target itself already has this content."""
        try:
            with open(self.path, "rb") as file:
                return os.fstat(file.fileno()).st_size == size and digest_of(file.fileno()) == sha256
        except FileNotFoundError:
            return False

    def finish(self, end: EndMark) -> None:
        """Put the file in place, durably. Raises CopyError, without a change, if it is not as the end mark says."""
        os.ftruncate(self._descriptor, end.size)
        if digest_of(self._descriptor) == end.sha256:
            self._put_in_place(end.mode)
        elif self.is_in_place(end.size, end.sha256):  # a run was killed after its rename
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
        """Unlock the .part file for another run; delete it if it is empty."""
        if self._file is not None and os.fstat(self._file).st_size == 0:
            self.discard()
        self._release()

    def discard_others(self) -> list[str]:
        """Delete unfinished copies to the same target that no run is using; return the ids of the copies."""
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

    def _put_in_place(self, mode: int | None) -> None:
        if os.path.exists(self.path):
            mode = stat.S_IMODE(os.stat(self.path).st_mode)
        os.fchmod(self._descriptor, 0o666 & ~_umask() if mode is None else mode)
        os.fsync(self._descriptor)
        os.rename(self.part, self.path)
        _sync_directory(self.path)
        self._release()

    def _release(self) -> None:
        file, self._file = self._file, None  # first, so that an interrupt never closes it twice
        if file is not None:
            os.close(file)

    def _write_at(self, offset: int, data: bytes) -> None:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._descriptor, left, offset)
            left, offset = left[written:], offset + written


def check_target(path: str) -> None:
    """Raise CopyError for a path that cannot become a file."""
    real = os.path.realpath(path)
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise CopyError(f"{path}: exists and is not a regular file")
    if not os.path.isdir(os.path.dirname(real)):
        raise CopyError(f"{path}: there is no directory {os.path.dirname(real)}")


def digest_of(descriptor: int, size: int = sys.maxsize) -> str:
    """Return the SHA-256 of an open file, or of its first `size` bytes, in hex."""
    digest, offset = hashlib.sha256(), 0
    while block := os.pread(descriptor, min(1024 * 1024, size - offset), offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def _lines(run: ColumnBatch) -> tuple[list[bytes], list[int]]:
    """Return a run's lines and their offsets. Raises CopyError if it is not part of a file copy."""
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
    """Yield ranges of lines that are contiguous in the file; usually that is one range."""
    ends = list(map(operator.add, offsets, map(len, lines)))
    breaks = [] if offsets[1:] == ends[:-1] else [n for n in range(1, len(lines)) if offsets[n] != ends[n - 1]]
    yield from itertools.pairwise([0, *breaks, len(lines)])


def _open_locked(path: str) -> int | None:
    """Open or create the file and lock it; return None if another run has the lock."""
    while True:
        # O_NOFOLLOW: a symbolic link could lead to the source, or to any file of this user.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another run may have renamed or deleted the file between open and lock.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before


def _sync_directory(path: str) -> None:
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
