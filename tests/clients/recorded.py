"""Copy a file and record the system calls: `python -m tests.clients.recorded LOG [--short] SRC DST URL`.

With --short each write accepts only a part of its data.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import threading
from typing import Any

from clients import copy_file

_writing = threading.Lock()


def main(log: str, *arguments: str) -> int:
    *options, source, target, url = arguments
    with open(log, "w") as file:

        def record(call: str, argument: object) -> None:
            with _writing:
                file.write(json.dumps([call, argument]) + "\n")

        _record_files(record, "--short" in options)
        _record_requests(record)
        return copy_file.main([source, target, "--url", url, "--batch", "500"])


def _record_files(record: Any, short: bool) -> None:
    pwrite, fdatasync, fsync, rename, ftruncate = os.pwrite, os.fdatasync, os.fsync, os.rename, os.ftruncate

    def recorded_pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        written = pwrite(descriptor, data[: max(1, len(data) // 2)] if short else data, offset)
        record("pwrite", written)
        return written

    def recorded_fdatasync(descriptor: int) -> None:
        fdatasync(descriptor)
        record("fdatasync", "target.part")

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        record("fsync", "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "target.part")

    def recorded_rename(old: str, new: str) -> None:
        record("rename", None)
        rename(old, new)

    def recorded_ftruncate(descriptor: int, size: int) -> None:
        record("ftruncate", size)
        ftruncate(descriptor, size)

    os.pwrite, os.fdatasync, os.fsync = recorded_pwrite, recorded_fdatasync, recorded_fsync  # type: ignore[assignment]
    os.rename, os.ftruncate = recorded_rename, recorded_ftruncate  # type: ignore[assignment]


def _record_requests(record: Any) -> None:
    class Recorded(socket.socket):
        def send(self, data: Any, *flags: int) -> int:
            head, _, body = bytes(data).partition(b"\r\n\r\n")
            if head.startswith(b"DELETE /queues/copy-"):
                record("delete", None)
            elif head.startswith(b"POST /transactions"):
                record("ack", json.loads(body)["ack"])
            elif b"/messages/ack " in head.partition(b"\r\n")[0]:
                record("ack", json.loads(body)["receipts"])
            return super().send(data, *flags)

    socket.socket = Recorded  # type: ignore[misc]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
