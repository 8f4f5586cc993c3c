"""The producing half of a file copy: cut a file into messages, and send them in batches, each exactly once.

Why a kill at any point does no harm. The file alone determines the batches. They are sent one at a time, and each is
stored whole or not at all. The same commit adds to the queue's total `sent`. So `sent` is always a sum of whole batches
from the start of the file, and a second run continues right after them. A late request of the first run carries the
Idempotency-Key that the second run uses for that batch, so the batch is stored once. (Stored twice it would do no harm,
since a line is written at its offset.) If the file changed between two runs, it is another copy. A change that shows
not in size, time or inode shows in the SHA-256 of the end mark, which covers the whole file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, BinaryIO, Protocol

from ..client import QueueClient
from ..column_batches import RUNS
from ..fetching import Results
from .plan import MARK_READER, CopyError, Plan, Unresumable, find_begin_mark, totals
from .target import digest_of

BLOCK = 1024 * 1024  # bytes read at a time
LONGEST_PIECE = 256 * 1024  # bytes of a line in one message; a longer line needs several messages
LARGEST_BATCH = 1024 * 1024  # bytes of the file: in JSON one takes up to 6, and the service accepts 8 MiB
LOOK_EVERY = 0.2  # seconds, at the end of a file that is followed
MOST_AHEAD = 32 * 1024 * 1024  # bytes sent and not yet written, if one process runs both halves

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Stop = Callable[[], bool]
Special = dict[str, bool | str]  # attributes of a line that is not UTF-8, or has no newline


class Producing:
    """The producer of a copy whose consumer is in the same process, at work in a thread of its own."""

    def __init__(self, produce: Callable[[], None]) -> None:
        self.has_sent_all = False
        self.results: Results = queue.SimpleQueue()  # what the consumer waits for: an error here, and what it fetches
        self._thread = threading.Thread(target=self._run, args=(produce,), name="copy-producer", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None) -> None:
        """Return when it has ended, or after these seconds."""
        self._thread.join(seconds)

    def _run(self, produce: Callable[[], None]) -> None:
        try:
            produce()
            self.has_sent_all = True
        except BaseException as error:
            self.results.put(error)


class Flow:
    """Limits how far the producer in the same process is ahead of the consumer, in bytes."""

    def __init__(self) -> None:
        self._ahead = 0
        self._stopped = False
        self._written: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def sent(self, size: int) -> bool:
        """Wait while the producer is too far ahead. Return False after `stop`."""
        self._ahead += size
        while not self._stopped and (self._ahead > MOST_AHEAD or not self._written.empty()):
            written = self._written.get()
            if written is None:
                self._stopped = True
            else:
                self._ahead -= written
        return not self._stopped

    def written(self, size: int) -> None:
        self._written.put(size)

    def stop(self) -> None:
        self._written.put(None)


class Readable(Protocol):
    """An open file. Its `read` returns b"" at the end, and None if there is nothing to read yet."""

    def fileno(self) -> int: ...

    def read(self, size: int, /) -> bytes | None: ...


class FollowedFile:
    """A file that grows. It ends where it ended when `stop` returned True. Raises Unresumable if truncated."""

    def __init__(self, file: BinaryIO, stop: Stop) -> None:
        self._file = file
        self._stop = stop
        self._end: int | None = None
        self.fileno = file.fileno

    def read(self, size: int, /) -> bytes | None:
        is_stopped = self._stop()
        length, place = os.fstat(self.fileno()).st_size, self._file.tell()
        if length < place:
            raise Unresumable(f"{self._file.name}: was truncated while it was being copied; run the copy again")
        if is_stopped and self._end is None:
            self._end = length
        if block := self._file.read(min(size, (length if self._end is None else self._end) - place)):
            return block
        if is_stopped:
            return b""
        time.sleep(LOOK_EVERY)
        return None


@dataclass(slots=True)
class Lines:
    """Successive lines, or pieces of long ones, in columns; and the bytes of the file that each covers."""

    texts: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)  # bytes from the start of the file
    sizes: list[int] = field(default_factory=list)
    specials: dict[int, Special] = field(default_factory=dict)  # by place in the columns

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, other: Lines, start: int, end: int) -> None:
        """Append the other's lines from place `start` to `end`."""
        shift = len(self) - start
        self.specials |= {place + shift: special for place, special in other.specials.items() if start <= place < end}
        self.texts += other.texts[start:end]
        self.offsets += other.offsets[start:end]
        self.sizes += other.sizes[start:end]


@dataclass(slots=True)
class Batch:
    """The messages of one request: lines, after the begin mark in the first, before the end mark in the last."""

    before: Mapping[str, Any] | None = None
    lines: Lines = field(default_factory=Lines)
    after: Mapping[str, Any] | None = None
    size: int = 0  # bytes of the file

    def __len__(self) -> int:
        """Return the number of messages."""
        return len(self.lines) + (self.before is not None) + (self.after is not None)

    def add(self, lines: Lines, start: int, end: int) -> None:
        self.lines.add(lines, start, end)
        self.size += sum(lines.sizes[start:end])

    def encoded(self) -> tuple[bytes, str]:
        """Return the batch as JSON, and its media type."""
        lines = self.lines
        if not (self.before or self.after or lines.specials):
            return f'{{"texts":{_json(lines.texts)},"attributes":{{"offset":{_json(lines.offsets)}}}}}'.encode(), RUNS
        messages = [
            {"text": text, "attributes": {"offset": offset, **lines.specials.get(place, {})}}
            for place, (text, offset) in enumerate(zip(lines.texts, lines.offsets, strict=True))
        ]
        return _json([mark for mark in (self.before, *messages, self.after) if mark]).encode(), "application/json"


def produce(
    client: QueueClient,
    plan: Plan,
    stored: int,
    sent: Callable[[int], bool],
    stop: Stop | None = None,
) -> None:
    """Send the file between its marks, except for the first `stored` messages. Raises CopyError, QueueError, OSError.

    Calls `sent` with the bytes of each batch, and returns early if that returns False. With `stop`, follows the file
    until that returns True.
    """
    with open(plan.source, "rb", buffering=0) as file:
        count = 0
        for index, batch in enumerate(batches(FollowedFile(file, stop) if stop else file, plan)):
            count += len(batch)
            if count <= stored:
                continue
            if not sent(0):
                return
            client.send_encoded(*batch.encoded(), idempotency_key=f"{plan.id}-{index}")
            if not sent(batch.size):
                return


def stored_already(client: QueueClient, plan: Plan) -> int:
    """Return how many of the copy's messages earlier runs sent. Raises CopyError if another copy is in the queue."""
    known = totals(client)
    if known is None or known["sent"] == 0:
        return 0
    begin = find_begin_mark(client)
    if begin is None or begin.copy != plan.id:
        raise CopyError(
            f"queue '{client.queue}' is in use by another copy, or by one of an earlier version of the file; "
            "choose another with --queue, or delete it and start again with --no-resume"
        )
    return int(known["sent"])


def batches(file: Readable, plan: Plan) -> Iterator[Batch]:
    """Yield the copy's batches, limited by the plan's batch size and by bytes; the same in each run over one file.

    Raises Unresumable instead of the last batch if the file is not as planned.
    """
    digest = hashlib.sha256()
    count = size = 0
    batch = Batch({"text": "", "recipient": MARK_READER, "attributes": {"copy": plan.id}})
    for lines in cut(file, sys.maxsize if plan.size is None else plan.size, digest):
        start, count, size = 0, count + len(lines), size + sum(lines.sizes)
        if not lines and batch:
            yield batch
            batch = Batch()
        while start < len(lines):
            end = start + _room(batch, plan.batch, lines.sizes[start : start + plan.batch])
            batch.add(lines, start, end)
            start = end
            if start < len(lines):
                yield batch
                batch = Batch()
    sent = digest.hexdigest()
    if not plan.holds(file.fileno(), lambda: digest_of(file.fileno(), size), sent):
        raise Unresumable(f"{plan.source}: changed while it was being copied; run the copy again")
    if len(batch) >= plan.batch:
        yield batch
        batch = Batch()
    end_mark = {"end": True, "copy": plan.id, "size": size, "count": count, "sha256": sent, "mode": plan.mode}
    batch.after = {"text": "", "attributes": end_mark}
    yield batch


def cut(file: Readable, size: int, digest: hashlib._Hash) -> Iterator[Lines]:
    r"""Yield all lines of the file's first `size` bytes, long ones in pieces. Only b"\n" ends a line.

    Yields none if there is nothing to read yet.
    """
    offset, rest = 0, b""
    while (block := file.read(min(BLOCK, size))) != b"":
        if block is None:
            yield Lines()
            continue
        size -= len(block)
        digest.update(block)
        whole, newline, rest = (rest + block).rpartition(b"\n")
        if newline:
            yield _lines(whole, offset)
            offset += len(whole) + 1
        *pieces, rest = _pieces(rest)
        if pieces:
            yield _decode([(piece, False) for piece in pieces], offset)
            offset += sum(map(len, pieces))
    if rest:
        yield _decode([(rest, False)], offset)


def _lines(whole: bytes, offset: int) -> Lines:
    """Return the lines of a part of the file that begins at `offset` and ends before a newline."""
    lines = whole.split(b"\n")
    sizes = [len(line) + 1 for line in lines]
    if max(sizes) <= LONGEST_PIECE:
        with suppress(UnicodeDecodeError):
            return Lines(whole.decode().split("\n"), list(accumulate(sizes[:-1], initial=offset)), sizes)
    cut_up = (list(_pieces(line)) for line in lines)
    return _decode(
        ((piece, place == len(pieces)) for pieces in cut_up for place, piece in enumerate(pieces, start=1)), offset
    )


def _decode(pieces: Iterable[tuple[bytes, bool]], offset: int) -> Lines:
    """Return the lines of successive pieces; a flag says whether the piece ends its line."""
    lines = Lines()
    for piece, is_end in pieces:
        special: Special = {} if is_end else {"newline": False}
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            text = base64.b64encode(piece).decode()
            special["encoding"] = "base64"
        if special:
            lines.specials[len(lines)] = special
        lines.texts.append(text)
        lines.offsets.append(offset)
        lines.sizes.append(len(piece) + is_end)
        offset += lines.sizes[-1]
    return lines


def _room(batch: Batch, most: int, sizes: list[int]) -> int:
    """Return how many lines of these sizes fit into the batch, which has at most `most` messages."""
    sizes = sizes[: max(0, most - len(batch))]
    if batch.size + sum(sizes) <= LARGEST_BATCH:
        return len(sizes)
    return sum(1 for end in accumulate(sizes, initial=batch.size) if end <= LARGEST_BATCH) - 1


def _pieces(line: bytes) -> Iterator[bytes]:
    """Cut the line into pieces that are short enough.

    A cut depends only on the bytes before it, so each run cuts at the same places. It falls at the start of a code
    point, so that a piece of text is text.
    """
    start = 0
    while len(line) - start > LONGEST_PIECE:
        most = start + LONGEST_PIECE
        cut = next((most - back for back in range(4) if line[most - back] & 0xC0 != 0x80), most)
        yield line[start:cut]
        start = cut
    yield line[start:]
