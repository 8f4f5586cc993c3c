"""Durable queues. `open_store(url)` gives a Store; what it promises stands in storage/model.py."""

from __future__ import annotations

from pathlib import Path

from storage.errors import UnusableDatabase
from storage.model import Store

__all__ = ["open_store", "path_of"]


def open_store(url: str, *, pollers: int = 32) -> Store:
    """The store at `sqlite:///relative/path` or `sqlite:////absolute/path`; `pollers` readers may wait at once.

    Open it in each process for itself, after any fork. Raises UnusableDatabase with the reason.
    """
    path = path_of(url)
    from storage.sqlite import SqliteStore  # an engine is loaded when a URL asks for it

    return SqliteStore(path, pollers=pollers)


def path_of(url: str) -> Path:
    """The file a sqlite:/// URL names. Raises UnusableDatabase."""
    scheme, _, path = url.partition("://")
    if scheme != "sqlite" or not path.startswith("/") or len(path) < 2:
        raise UnusableDatabase(f"'{scheme}://…' names no database; use sqlite:///file or sqlite:////absolute/file")
    return Path(path[1:])
