"""The paths of queues and messages at the service."""

from __future__ import annotations

import re
from urllib.parse import quote

QUEUE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")


def queue_path(queue: str) -> str:
    """Return the path of a queue. Raises ValueError for a bad name."""
    check_queue_name(queue)
    return f"/queues/{queue}"


def check_queue_name(queue: str) -> None:
    """Raise ValueError for a name that the service would refuse, or for none."""
    if not queue:  # mostly an unset variable, which must not select the client's own queue
        raise ValueError("the queue name is empty")
    if not isinstance(queue, str) or not QUEUE_NAME.fullmatch(queue):
        raise ValueError(
            f"this is not the name of a queue: {queue!r}; use at most 80 letters, digits, '.', '_' and '-', "
            "and do not begin with a '.'"
        )


def message_path(queue: str, id: str) -> str:
    """Return the path of a message by its id. Raises ValueError for anything else than an id."""
    if not (id.isascii() and id.isdigit()):  # a receipt has the same place in a path, and would settle the message
        raise ValueError(f"not the id of a message: {id!r}")
    return f"{queue_path(queue)}/messages/{id}"


def receipt_path(queue: str, receipt: str) -> str:
    """Return the path of a leased message by its receipt."""
    return f"{queue_path(queue)}/messages/{quote(receipt, safe='~')}"
