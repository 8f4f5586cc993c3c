"""The producing half of a file copy: a file cut into messages, and these sent in batches, each exactly once.

Why it is right, wherever it is killed. Batches are cut from the file alone, are sent one at a time, each is stored
whole or not at all, and the queue's `sent` total counts what was stored, in the same commit. So `sent` always is a
sum of whole batches from the start of the file, and a second run goes on right behind it. A request of the first run
that is still on its way carries the Idempotency-Key that the second run uses for that batch: whichever comes first is
stored, once. (Even stored twice it would do no harm: a line is written at its offset.) A file that changed between two
runs makes another copy; one that changed without a trace in size, time and inode is found out by its SHA-256, in the
end mark, which is taken over all of the file in the run that sends it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from clients.client import QueueClient
from clients.copy_plan import MARK_READER, CopyError, Plan, find_begin_mark, totals

BLOCK = 1024 * 1024  # bytes read at a time
LONGEST_PIECE = 256 * 1024  # bytes of a line in one message; a longer line takes several
LARGEST_BATCH = 1024 * 1024  # bytes of the file: JSON makes up to 6 bytes of one, and the service takes 8 MiB
MOST_AHEAD = 32 * 1024 * 1024  # bytes sent and not yet written, where both halves are in one process

NO_NEWLINE = ',"newline":false'

_json = json.JSONEncoder(ensure_ascii=False).encode


class Flow:
    """How far the halves in one process are: the producer stops when it gets too far ahead, or is told to."""

    def __init__(self) -> None:
        self._ahead = 0
        self._stopped = False
        self._changed = threading.Condition()

    def sent(self, size: int) -> bool:
        """Waits while the producer is too far ahead. False when it is to stop."""
        with self._changed:
            self._ahead += size
            self._changed.wait_for(lambda: self._stopped or self._ahead <= MOST_AHEAD)
            return not self._stopped

    def written(self, size: int) -> None:
        with self._changed:
            self._ahead -= size
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()


@dataclass(slots=True)
class Batch:
    messages: list[str] = field(default_factory=list)  # JSON
    size: int = 0  # bytes of the file

    def encoded(self) -> bytes:
        return f"[{','.join(self.messages)}]".encode()


def produce(client: QueueClient, plan: Plan, stored: int, sent: Callable[[int], bool]) -> None:
    """All of the file is in the queue, between its marks. Raises CopyError, QueueError, OSError.

    The first `stored` messages are not sent again. `sent` is told of the bytes that were; False from it ends this.
    """
    with open(plan.source, "rb", buffering=0) as file:
        count = 0
        for index, batch in enumerate(batches(file, plan)):
            count += len(batch.messages)
            if count <= stored:
                continue
            client.send_encoded(batch.encoded(), idempotency_key=f"{plan.id}-{index}")
            if not sent(batch.size):
                return


def stored_already(client: QueueClient, plan: Plan) -> int:
    """How many of the copy's messages the queue accepted in earlier runs."""
    known = totals(client)
    if known is None or known["sent"] == 0:
        return 0
    begin = find_begin_mark(client)
    if begin is None or begin.copy != plan.id:
        raise CopyError(
            f"queue '{client.queue}' is in use by another copy, or by one of an earlier state of the file; "
            "name another with --queue, or have it deleted and start afresh with --no-resume"
        )
    return int(known["sent"])


def batches(file: BinaryIO, plan: Plan) -> Iterator[Batch]:
    """The copy's messages, cut by the plan's batch size and by bytes: the same at every run over the same file.

    Raises CopyError, before the last one, when the file is not as it was planned.
    """
    digest = hashlib.sha256()
    count = 0
    begin = {"text": "", "recipient": MARK_READER, "attributes": {"copy": plan.id, "size": plan.size}}
    batch = Batch([_json(begin)])
    for message, size in messages(file, digest):
        if len(batch.messages) >= plan.batch or batch.size + size > LARGEST_BATCH:
            yield batch
            batch = Batch()
        batch.messages.append(message)
        batch.size += size
        count += 1
    if file.tell() != plan.size or not plan.still_holds(file.fileno()):
        raise CopyError(f"{plan.source}: changed while it was being copied; run the copy again")
    end = {"end": True, "copy": plan.id, "size": plan.size, "count": count, "sha256": digest.hexdigest()}
    batch.messages.append(_json({"text": "", "attributes": end}))
    yield batch


def messages(file: BinaryIO, digest: hashlib._Hash) -> Iterator[tuple[str, int]]:
    r"""Each line as a message's JSON, and its size in bytes with its newline. Only b"\n" ends a line."""
    offset, rest = 0, b""
    while block := file.read(BLOCK):
        digest.update(block)
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if len(line) > LONGEST_PIECE:
                *pieces, line = _pieces(line)
                for piece in pieces:
                    yield _message(piece, offset, NO_NEWLINE), len(piece)
                    offset += len(piece)
            yield _message(line, offset), len(line) + 1
            offset += len(line) + 1
        *pieces, rest = _pieces(rest)
        for piece in pieces:
            yield _message(piece, offset, NO_NEWLINE), len(piece)
            offset += len(piece)
    if rest:
        yield _message(rest, offset, NO_NEWLINE), len(rest)


def _message(line: bytes, offset: int, newline: str = "") -> str:
    try:
        text, encoding = line.decode(), ""
    except UnicodeDecodeError:
        text, encoding = base64.b64encode(line).decode(), ',"encoding":"base64"'
    return f'{{"text":{_json(text)},"attributes":{{"offset":{offset}{newline}{encoding}}}}}'


def _pieces(line: bytes) -> Iterator[bytes]:
    """The line, cut into pieces that are short enough.

    A cut depends on the bytes before it alone, so it falls at the same place however the file was read; and at the
    start of a code point, so that a piece of text is text.
    """
    start = 0
    while len(line) - start > LONGEST_PIECE:
        most = start + LONGEST_PIECE
        cut = next((most - back for back in range(4) if line[most - back] & 0xC0 != 0x80), most)
        yield line[start:cut]
        start = cut
    yield line[start:]
