"""Opening a SQLite file for the queue: checks, connections and the schema."""

from __future__ import annotations

import errno
import mmap
import os
import re
import time
from contextlib import suppress
from importlib import resources
from pathlib import Path

import apsw

from storage.clock import BootClock, boot_id, first_offset
from storage.errors import Busy, UnusableDatabase
from storage.model import Disk
from storage.sqlite.disk.lock import FileLock

APPLICATION_ID = 0x51554555  # "QUEU", in the file's header: identifies our files
# The script at place n upgrades a file from version n to n + 1.
_STEPS = ["1.sql", "2.sql", "3.sql", "4.sql", "5.sql", "6.sql"]
SCHEMA_VERSION = len(_STEPS)  # in the file's user_version
MAX_WAL = 64 * 1024 * 1024  # bytes the write-ahead log keeps on disk once it has been checkpointed
BUSY_TIMEOUT = 5_000  # ms

RESERVE = 64 * 1024 * 1024  # bytes of the disk that sends leave free, or a quarter of a small one
AMPLE = 2 * 1024 * 1024 * 1024  # free bytes that no disk is filled with within AMPLE_FOR seconds
AMPLE_FOR = 0.1

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "ncpfs", "fuse.sshfs"}
_PRAGMAS = f"""
    PRAGMA synchronous = FULL;          -- NORMAL may lose acknowledged writes at a power cut
    PRAGMA mmap_size = 0;               -- a read error is an error, not a SIGBUS
    PRAGMA journal_size_limit = {MAX_WAL};
    PRAGMA temp_store = MEMORY;
    PRAGMA cache_size = -16384;
"""


class DatabaseFile:
    """A checked database file with the queue schema. Open it in each process, after any fork."""

    def __init__(self, path: Path, *, migrate: bool = True) -> None:
        """Open the file, or create it. Raises UnusableDatabase with the reason, Busy while it is locked.

        With `migrate=False`, leave a file of an earlier version as it is; its clock is then not the stored one.
        """
        refuse_unsafe_sqlite(apsw.sqlite_lib_version())
        self.path = path.resolve()  # the log, the lock and the disk are at the target of a symbolic link
        self._folder = str(self.path.parent)
        self._ample_until = 0.0  # monotonic: until then the disk has room
        _check_folder(self.path)
        try:
            # The lock is a file of its own, never the database: closing any descriptor of that file would
            # drop this process's POSIX locks on it, and another process could delete the log under us.
            self.lock = FileLock(Path(f"{self.path}-lock"))
            self._give_lock_to_owner()
            with self.lock.held(time.monotonic() + BUSY_TIMEOUT / 1000) as held:
                if not held:
                    raise Busy
                self.clock = self._prepare(migrate)
        except apsw.BusyError:
            raise Busy from None
        except apsw.Error as fault:
            raise UnusableDatabase(f"{self.path} cannot be used: {fault}") from fault
        except OSError as fault:
            raise UnusableDatabase(f"{fault.filename or self.path} cannot be used: {fault.strerror}") from fault

    def connect(self) -> apsw.Connection:
        """Return a connection for one thread at a time."""
        connection = apsw.Connection(str(self.path), statementcachesize=128)
        connection.set_busy_timeout(BUSY_TIMEOUT)
        # Else SQLite uses bound values to choose partial indexes, and prepares such statements again at each use.
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        connection.execute(_PRAGMAS).fetchall()  # some return a row, and later ones run only after it is read
        return connection

    def is_nearly_full(self, connection: apsw.Connection) -> bool:
        """Return whether the disk has only the reserve for reads and acks, which write before they free space.

        Removed messages leave space inside the file, which does not shrink at once; the log needs some outside.
        """
        if time.monotonic() < self._ample_until:
            return False
        disk = os.statvfs(self._folder)
        free, reserve = disk.f_bavail * disk.f_frsize, min(RESERVE, disk.f_blocks * disk.f_frsize // 4)
        if free >= reserve:
            if free >= AMPLE:
                self._ample_until = time.monotonic() + AMPLE_FOR
            return False
        inside: int = connection.pragma("freelist_count") * connection.pragma("page_size")
        return free < reserve // 4 or free + inside < reserve

    def disk(self) -> Disk:
        room = os.statvfs(self.path.parent)
        log = Path(f"{self.path}-wal")
        return Disk(self.path.stat().st_size, log.stat().st_size if log.exists() else 0, room.f_bavail * room.f_frsize)

    def distrust_log(self) -> None:
        """Record that a write failed: the next process that opens the file before a reboot rewrites its log."""
        with suppress(OSError):  # a disk may fail this too
            os.pwrite(self.lock.descriptor, _distrust_mark(), 0)

    def close(self) -> None:
        self.lock.close()

    def _give_lock_to_owner(self) -> None:
        """Give root's lock file to the database's owner, as SQLite gives its log, so that the service can open it."""
        if os.geteuid() == 0 and self.path.exists():
            owner = self.path.stat()
            os.fchown(self.lock.descriptor, owner.st_uid, owner.st_gid)

    def _prepare(self, migrate: bool) -> BootClock:
        connection = self.connect()
        try:
            _check_identity(connection, self.path)
            self._write_log_anew(connection)
            stored = _stored_clock(connection)
            if stored is not None:
                return stored  # without a write: a new worker must not wait for a writer
            if not migrate and connection.pragma("user_version") < SCHEMA_VERSION:
                return BootClock(first_offset(not_before=0))
            if connection.pragma("page_count") == 0:
                connection.pragma(
                    "auto_vacuum", "incremental"
                )  # so that upkeep can shrink the file; only possible before the first write
            connection.pragma("journal_mode", "wal")
            connection.execute("BEGIN IMMEDIATE")
            _migrate(connection)
            clock = _set_clock(connection)
            connection.execute("COMMIT")
            return clock
        finally:
            connection.close()

    def _write_log_anew(self, connection: apsw.Connection) -> None:
        """After a failed write since the boot, rewrite the log, so that all its readable content is on disk.

        After a failed fsync the kernel shows the pages as written, but no later fsync writes them. SQLite would append
        to such frames when it opens the log again, and a power failure would lose all writes acknowledged since.
        """
        if os.pread(self.lock.descriptor, 100, 0) != _distrust_mark():
            return
        connection.execute("BEGIN IMMEDIATE")  # no process changes the log meanwhile; checkpoints only read it
        try:
            _rewrite(connection.filename_wal)
        except FileNotFoundError:
            pass
        finally:
            connection.execute("ROLLBACK")
        os.ftruncate(self.lock.descriptor, 0)


def refuse_unsafe_sqlite(version: str) -> None:
    """Raise UnusableDatabase for a SQLite with the WAL-reset bug (https://sqlite.org/wal.html#walresetbug)."""
    numbers = tuple(int(part) for part in version.split("."))
    is_fixed = numbers >= (3, 51, 3) or (3, 50, 7) <= numbers < (3, 51) or (3, 44, 6) <= numbers < (3, 45)
    if not is_fixed:
        raise UnusableDatabase(
            f"SQLite {version} can corrupt a database in WAL mode (the WAL-reset bug); "
            "install a newer apsw, with SQLite 3.51.3 or newer"
        )


def _check_folder(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise UnusableDatabase(f"the directory {folder} does not exist")
    # The log and the lock are in the same directory, so it must be writable too.
    if not os.access(folder, os.W_OK | os.X_OK):  # first: a closed directory hides its files
        raise UnusableDatabase(f"{folder} is not writable")
    if path.is_dir():
        raise UnusableDatabase(f"{path} is a directory")
    if path.exists() and not os.access(path, os.W_OK):
        raise UnusableDatabase(f"{path} is not writable")
    kind = _filesystem(folder)
    if kind in _NETWORK:
        raise UnusableDatabase(f"{folder} is on a network filesystem ({kind}), where SQLite's locks do not hold")


def _filesystem(folder: Path) -> str:
    """Return the type of a directory's filesystem, by /proc/self/mounts, or "" if it is unknown."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    resolved, best, kind = folder.resolve(), -1, ""
    for _, where, name, *_ in mounts:
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), where))
        if resolved.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), name
    return kind


def _check_identity(connection: apsw.Connection, path: Path) -> None:
    try:
        owner, version = connection.pragma("application_id"), connection.pragma("user_version")
        empty = connection.execute("SELECT count(*) = 0 FROM sqlite_schema").get
    except apsw.NotADBError:
        raise UnusableDatabase(f"{path} is not a SQLite database") from None
    if not empty and owner != APPLICATION_ID:
        raise UnusableDatabase(f"{path} is a SQLite database of another program")
    if owner == APPLICATION_ID and version > SCHEMA_VERSION:
        raise UnusableDatabase(f"{path} has schema version {version}; this program knows up to {SCHEMA_VERSION}")


def _distrust_mark() -> bytes:
    """Return the lock file's content for a distrusted log. A reboot ends the distrust: it empties the page cache."""
    return f"a write has failed in boot {boot_id()}\n".encode()


def _rewrite(path: str) -> None:
    """Rewrite the whole file in place, past the page cache if the filesystem supports it.

    Through the page cache ext4 writes the blocks, but keeps those whose first write failed marked as unwritten.
    """
    try:
        _write_again(path, getattr(os, "O_DIRECT", 0))
    except OSError as fault:
        if fault.errno != errno.EINVAL:
            raise
        _write_again(path, 0)


def _write_again(path: str, flag: int) -> None:
    block, place = memoryview(mmap.mmap(-1, 1024 * 1024)), 0  # O_DIRECT needs whole pages, in memory and in the file
    source, target = os.open(path, os.O_RDONLY | os.O_CLOEXEC), os.open(path, os.O_WRONLY | os.O_CLOEXEC | flag)
    try:
        end = os.fstat(source).st_size  # read it first: padding makes the file longer
        while place < end:
            count = os.preadv(source, [block], place)
            padding = -count % mmap.PAGESIZE  # SQLite ignores bytes after the last frame
            block[count : count + padding] = bytes(padding)
            if os.pwritev(target, [block[: count + padding]], place) != count + padding:
                raise OSError(errno.EIO, "could not rewrite the write-ahead log")
            place += count
        os.fsync(target)
    finally:
        os.close(source)
        os.close(target)


def _migrate(connection: apsw.Connection) -> None:
    for script in _STEPS[connection.pragma("user_version") :]:
        connection.execute((resources.files("storage.sqlite") / "schema" / script).read_text())
    connection.pragma("application_id", APPLICATION_ID)
    connection.pragma("user_version", SCHEMA_VERSION)


def _stored_clock(connection: apsw.Connection) -> BootClock | None:
    """Return the clock of a file with this version's schema that was opened since the boot, else None."""
    if connection.pragma("journal_mode") != "wal" or connection.pragma("user_version") != SCHEMA_VERSION:
        return None
    stored = connection.execute("SELECT boot_id, offset_ms FROM clock").get
    return BootClock(stored[1]) if stored is not None and stored[0] == boot_id() != "" else None


def _set_clock(connection: apsw.Connection) -> BootClock:
    """Set and return the clock, not before any time in the file: a wall clock set back must not make leases longer."""
    last = connection.execute(
        "SELECT max(moment) FROM (SELECT * FROM (SELECT max(sent_at, coalesce(arrived_at, 0)) AS moment "
        "                                          FROM messages ORDER BY id DESC LIMIT 1) "
        "UNION ALL SELECT * FROM (SELECT sent_at FROM runs ORDER BY id DESC LIMIT 1) "
        "UNION ALL SELECT last_ms FROM clock)"
    ).get
    offset = first_offset(not_before=last or 0)
    connection.execute("DELETE FROM clock")
    connection.execute(
        "INSERT INTO clock (boot_id, offset_ms, last_ms) VALUES (?, ?, ?)", (boot_id(), offset, last or 0)
    )
    return BootClock(offset)
