"""The attribute RedrivePolicy: after how many receives a message moves, and to which queue."""

from __future__ import annotations

import json
from typing import Any

from web.sqs.errors import SqsError, invalid
from web.sqs.names import is_fifo, name_in_arn

NAME = "RedrivePolicy"
_MOST_RECEIVES = 1000


def changes(queue: str, value: str) -> dict[str, Any]:
    """Return the changes of a queue's settings; an empty value ends the policy. Raises SqsError.

    The caller checks that the dead-letter queue exists.
    """
    if not value:
        return {"dead_letter_queue": None, "max_receives": None}
    try:
        policy = json.loads(value)
    except (ValueError, RecursionError):
        policy = None
    if not isinstance(policy, dict):
        raise _refused(value, "Redrive policy is not a valid JSON map.")
    for name in ("deadLetterTargetArn", "maxReceiveCount"):
        if name not in policy:
            raise _refused(value, f"Redrive policy does not contain mandatory attribute: {name}.")
    target = name_in_arn(str(policy["deadLetterTargetArn"]))
    if target is None:
        raise _refused(value, "Invalid value for deadLetterTargetArn.")
    count = str(policy["maxReceiveCount"])
    if not (count.isascii() and count.isdigit() and len(count) < 9 and 1 <= int(count) <= _MOST_RECEIVES):
        why = f"Invalid value for maxReceiveCount: {count}, valid values are from 1 to 1000 both inclusive."
        raise _refused(value, why)
    if is_fifo(target) != is_fifo(queue):
        raise _refused(value, "Dead-letter queue must be same type of queue as the source.")
    return {"dead_letter_queue": target, "max_receives": int(count)}


def no_target(value: str) -> SqsError:
    return _refused(value, "Dead letter target does not exist.")


def written(arn: str, count: int) -> str:
    return json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": count}, separators=(",", ":"))


def _refused(value: str, why: str) -> SqsError:
    return invalid(value, NAME, why)
