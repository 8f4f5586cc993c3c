"""Tokens as the operator writes them: `name:secret:rights:queues`, one a line; see docs/operations.md.

`python -m web.access.tokens NAME RIGHTS QUEUES` creates one.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Sequence
from fnmatch import translate
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from settings import Settings
from storage.errors import Unavailable

SEND, RECEIVE, ADMIN, METRICS = RIGHTS = ("send", "receive", "admin", "metrics")
LOOK_EVERY = 1.0  # seconds between two checks of the file
LEAST_SECRET = 16  # characters

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_SECRET = re.compile(rf"[A-Za-z0-9._~+/-]{{{LEAST_SECRET},256}}=*")  # the form of a Bearer token in RFC 6750
_HASH = re.compile(r"sha256=([0-9a-f]{64})")
_PATTERN = re.compile(r"[]A-Za-z0-9._*?[!-]{1,80}")

_log = logging.getLogger("queue_service")


class BadTokens(Exception):
    """The tokens are invalid; `str()` says where and why, without any part of a secret."""


class PlainSecret(NamedTuple):
    """A secret that is never printed."""

    text: str

    def __repr__(self) -> str:
        return "PlainSecret()"


class Grant(NamedTuple):
    """The rights of a token."""

    name: str
    digest: bytes
    rights: frozenset[str]
    queues: re.Pattern[str]
    prefix: str = ""  # common to the names of all these queues
    secret: PlainSecret | None = None  # to check signatures; None if the operator's line has only its hash

    def covers(self, queue: str) -> bool:
        return self.queues.fullmatch(queue) is not None


class Tokens:
    """The grants of QUEUE_TOKENS and QUEUE_TOKENS_FILE. A changed file is read again."""

    def __init__(self, settings: Settings) -> None:
        self._text = settings.tokens.replace(";", "\n")
        self._file = settings.tokens_file
        self._grants: list[Grant] = []
        self._seen: tuple[int, ...] | str = ""
        self._look_at = 0.0

    def load(self) -> list[Grant]:
        """Return all grants. Raises BadTokens, also if there are none."""
        grants = _parse(self._text, "QUEUE_TOKENS")
        if self._file:
            try:
                text = Path(self._file).read_text("utf-8")
            except OSError as fault:
                raise BadTokens(f"cannot read QUEUE_TOKENS_FILE: {fault.strerror}") from None
            except UnicodeDecodeError:
                raise BadTokens("QUEUE_TOKENS_FILE is not UTF-8") from None
            grants += _parse(text, "QUEUE_TOKENS_FILE")
        for what in ("name", "digest"):
            if len({getattr(grant, what) for grant in grants}) < len(grants):
                raise BadTokens(f"two tokens have the same {'name' if what == 'name' else 'secret'}")
        if not grants:
            raise BadTokens("QUEUE_TOKENS and QUEUE_TOKENS_FILE contain no token")
        return grants

    def grants(self) -> Sequence[Grant]:
        """Return the grants, at most a second old; keep them while the file is invalid. Raises Unavailable if none."""
        if time.monotonic() >= self._look_at:
            self._look()
        if not self._grants:
            raise Unavailable("the service cannot read its tokens")
        return self._grants

    def _look(self) -> None:
        seen = _state_of(self._file)
        if seen != self._seen:
            try:
                self._grants = self.load()
            except BadTokens as fault:
                _log.error("%s; the service keeps the tokens it has", fault)
        self._seen = seen
        self._look_at = time.monotonic() + LOOK_EVERY


def hash_of(secret: str) -> bytes:
    """Return the SHA-256 of a secret. A random secret needs no slower hash."""
    return sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _state_of(file: str) -> tuple[int, ...] | str:
    """Return a value that changes when the file does."""
    if not file:
        return "none"
    try:
        state = os.stat(file)
    except OSError as fault:
        return str(fault.errno)
    return state.st_mtime_ns, state.st_size, state.st_ino


def _parse(text: str, source: str) -> list[Grant]:
    grants = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                grants.append(_grant(line.strip()))
            except BadTokens as fault:
                raise BadTokens(f"{source}, line {number}: {fault}") from None
    return grants


def _grant(line: str) -> Grant:
    parts = line.split(":")
    if len(parts) != 4:
        raise BadTokens("a token must be name:secret:rights:queues")
    name, secret, rights, patterns = parts
    if not _NAME.fullmatch(name):
        raise BadTokens("a name must be 1 to 80 of A-Z a-z 0-9 . _ - and start with a letter or a digit")
    hashed = _HASH.fullmatch(secret)
    if not hashed and (not _SECRET.fullmatch(secret) or secret.startswith("sha256=")):
        raise BadTokens(
            f"a secret must be {LEAST_SECRET} to 256 of A-Z a-z 0-9 . _ ~ + / - or, hashed, sha256= and 64 of 0-9 a-f"
        )
    if not set(rights.split(",")) <= set(RIGHTS):
        raise BadTokens(f"rights must be some of {', '.join(RIGHTS)}, separated by commas")
    if not all(map(_PATTERN.fullmatch, patterns.split(","))):
        raise BadTokens("queues must be names or patterns with * ? [ ], separated by commas")
    digest = bytes.fromhex(hashed[1]) if hashed else hash_of(secret)
    covered = re.compile("|".join(map(translate, patterns.split(","))))
    literals = [re.split(r"[]*?[]", pattern)[0] for pattern in patterns.split(",")]
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*literals, strict=False))
    prefix = "".join(column[0] for column in alike)
    plain = None if hashed else PlainSecret(secret)
    return Grant(name, digest, frozenset(rights.split(",")), covered, prefix, plain)


def main(arguments: Sequence[str], prog: str = "python -m web.access.tokens") -> int:
    """Print a new random secret for the client, and the line for the service; return the exit code."""
    if len(arguments) != 3:
        print(f"usage: {prog} NAME RIGHTS QUEUES, for example: {prog} shop send,receive 'orders*'", file=sys.stderr)
        return 2
    secret = secrets.token_urlsafe(32)
    name, rights, queues = arguments
    line = f"{name}:sha256={hash_of(secret).hex()}:{rights}:{queues}"
    try:
        _grant(line)
    except BadTokens as fault:
        print(f"{prog.removeprefix('python -m ')}: {fault}", file=sys.stderr)
        return 1
    print(f"for the client    {secret}\nfor the service   {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
