"""Names, URLs and ARNs of queues."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from storage.validation import QUEUE_NAME
from web.sqs.errors import invalid_value, no_queue

ACCOUNT = "000000000000"
DEFAULT_REGION = "us-east-1"
FIFO = ".fifo"

_NEW_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
_NEW_FIFO_NAME = re.compile(r"[A-Za-z0-9_-]{1,75}\.fifo")
_ARN = re.compile(r"arn:[a-z0-9-]*:sqs:[a-z0-9-]*:[0-9]*:([^:]+)")


def is_fifo(queue: str) -> bool:
    return queue.endswith(FIFO)


def name_in_url(url: str) -> str:
    """Return the last part of a URL's path, whatever its host and account. Raises SqsError if no queue can have it."""
    name = unquote(url.rstrip("/").rpartition("/")[2])
    if not QUEUE_NAME.fullmatch(name):
        raise no_queue()
    return name


def check_new_name(name: str, *, fifo: bool) -> None:
    """Raise SqsError unless a queue of this kind can be created under the name."""
    if fifo and not _NEW_FIFO_NAME.fullmatch(name):
        raise invalid_value(
            "The name of a FIFO queue can only include alphanumeric characters, hyphens, or underscores, must end with "
            ".fifo suffix and be 1 to 80 in length."
        )
    if not fifo and not _NEW_NAME.fullmatch(name):
        raise invalid_value("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")


def url_of(base: str, queue: str) -> str:
    """Return a queue's URL; `base` has the scheme and the host that the client used."""
    return f"{base}/{ACCOUNT}/{quote(queue)}"


def arn_of(region: str, queue: str) -> str:
    return f"arn:aws:sqs:{region}:{ACCOUNT}:{queue}"


def name_in_arn(arn: str) -> str | None:
    """Return the queue that an ARN names, whatever its region and account; None for another text."""
    found = _ARN.fullmatch(arn)
    return found[1] if found and QUEUE_NAME.fullmatch(found[1]) else None
