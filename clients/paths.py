"""The paths of queues and messages at the service."""

from __future__ import annotations

from urllib.parse import quote


def queue_path(queue: str) -> str:
    """Return the path of a queue. Raises ValueError for an empty name."""
    if not queue:  # mostly an unset variable, which must not select the client's own queue
        raise ValueError("the queue name is empty")
    return "/queues/" + quote(queue, safe="")


def message_path(queue: str, id: str) -> str:
    """Return the path of a message by its id. Raises ValueError for anything else than an id."""
    if not (id.isascii() and id.isdigit()):  # a receipt has the same place in a path, and would settle the message
        raise ValueError(f"not the id of a message: {id!r}")
    return f"{queue_path(queue)}/messages/{id}"


def receipt_path(queue: str, receipt: str) -> str:
    """Return the path of a leased message by its receipt."""
    return f"{queue_path(queue)}/messages/{quote(receipt, safe='~')}"
