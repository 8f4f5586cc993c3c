"""Attributes of queues: their checks, and their form in a queue's settings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from storage.model import Queue, QueueSettings, dead_letter_name
from web.sqs import redrive_policy
from web.sqs.errors import SqsError, invalid, invalid_value
from web.sqs.messages import MOST_BYTES
from web.sqs.names import arn_of, is_fifo

NEW_QUEUE = {"retention": 345_600.0}  # four days, as AWS; a native queue keeps messages until they are read
NEW_FIFO_QUEUE = NEW_QUEUE | {"key_lock": "head"}

_MOST_RETENTION = 1_209_600  # seconds
_FIFO_ONLY = ("FifoThroughputLimit", "DeduplicationScope")
_READ_ONLY = (
    *("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"),
    *("CreatedTimestamp", "LastModifiedTimestamp", "QueueArn"),
)
_SCOPES = {"queue": "queue", "messageGroup": "key"}
_WHOLE = re.compile(r"[0-9]{1,9}")


def changes(queue: str, attributes: Mapping[str, str], settings: QueueSettings) -> dict[str, Any]:
    """Return the changes of a queue's settings that set these attributes. Raises SqsError."""
    fifo, changed, texts = is_fifo(queue), dict[str, Any](), dict(settings.sqs)
    for name, value in attributes.items():
        if name == "FifoQueue" and fifo:
            if value != "true":
                raise SqsError(
                    "InvalidAttributeValue",
                    "Invalid value for the parameter FifoQueue. Reason: Modifying queue type is not supported.",
                )
        elif name in _FIFO_ONLY and not fifo:
            raise SqsError("InvalidAttributeName", f"You can specify the {name} only when FifoQueue is set to true.")
        elif name in _SETTINGS and (fifo or name != "ContentBasedDeduplication"):
            changed |= _SETTINGS[name](name, value)
        elif name == "RedrivePolicy":
            changed |= redrive_policy.changes(queue, value)
        elif name in _TEXTS:
            _TEXTS[name](name, value)
            texts[name] = value
        else:
            raise unknown(name)
    if texts != settings.sqs:
        changed["sqs"] = _one_encryption(attributes, {name: text for name, text in texts.items() if text})
    return changed


def described(queue: Queue, names: Iterable[str], region: str) -> dict[str, str]:
    """Return these attributes of a queue. Raises SqsError for a name that does not exist."""
    names = set(names)
    for name in names:
        if name not in _KNOWN:
            raise unknown(name)
    found = settings_described(queue.name, queue.settings, region)
    stats = queue.stats
    found |= {
        "QueueArn": arn_of(region, queue.name),
        "ApproximateNumberOfMessages": str(stats.ready + stats.blocked),
        "ApproximateNumberOfMessagesNotVisible": str(stats.leased),
        "ApproximateNumberOfMessagesDelayed": str(stats.delayed),
        "CreatedTimestamp": str(queue.created_at // 1000),
        "LastModifiedTimestamp": str(queue.modified_at // 1000),
    }
    return found if "All" in names else {name: value for name, value in found.items() if name in names}


def settings_described(queue: str, settings: QueueSettings, region: str) -> dict[str, str]:
    """Return the attributes that a queue's settings make."""
    texts = settings.sqs
    found = {
        "VisibilityTimeout": _seconds(settings.lease),
        "MaximumMessageSize": str(settings.max_message_bytes or MOST_BYTES),
        "MessageRetentionPeriod": _seconds(min(settings.retention or _MOST_RETENTION, _MOST_RETENTION)),
        "DelaySeconds": _seconds(settings.delay),
        "ReceiveMessageWaitTimeSeconds": _seconds(settings.wait),
        "SqsManagedSseEnabled": "false" if "KmsMasterKeyId" in texts else "true",
    }
    if "KmsMasterKeyId" in texts:
        found["KmsDataKeyReusePeriodSeconds"] = "300"
    if is_fifo(queue):
        found["FifoQueue"] = "true"
        found["ContentBasedDeduplication"] = "true" if settings.dedup_content else "false"
        found["DeduplicationScope"] = "messageGroup" if settings.dedup_scope == "key" else "queue"
        found["FifoThroughputLimit"] = "perQueue"
    if settings.max_receives:
        target = dead_letter_name(queue, settings)
        found["RedrivePolicy"] = redrive_policy.written(arn_of(region, target), settings.max_receives)
    return found | dict(texts)


def unknown(name: str) -> SqsError:
    return SqsError("InvalidAttributeName", f"Unknown Attribute {name}.")


def bad(name: str) -> SqsError:
    return SqsError("InvalidAttributeValue", f"Invalid value for the parameter {name}.")


def check_policy(name: str, value: str) -> dict[str, Any]:
    """Return a policy as an object; an empty one for an empty text. Raises SqsError."""
    try:
        policy = json.loads(value or "{}")
    except (ValueError, RecursionError):
        raise bad(name) from None
    if not isinstance(policy, dict):
        raise bad(name)
    return policy


def _one_encryption(asked: Mapping[str, str], texts: dict[str, str]) -> dict[str, str]:
    """Return the texts with one kind of encryption: the one that was asked for last. Raises SqsError for both."""
    managed = asked.get("SqsManagedSseEnabled") == "true"
    if managed and asked.get("KmsMasterKeyId"):
        raise SqsError(
            "InvalidAttributeName",
            "You can use one type of server-side encryption (SSE) at one time. You can either enable KMS SSE or SQS "
            "SSE.",
        )
    dropped: tuple[str, ...] = ()
    if managed:
        dropped = ("KmsMasterKeyId", "KmsDataKeyReusePeriodSeconds")
    elif asked.get("KmsMasterKeyId"):
        dropped = ("SqsManagedSseEnabled",)
    return {name: text for name, text in texts.items() if name not in dropped}


def _whole(name: str, value: str, least: int, most: int) -> int:
    if not _WHOLE.fullmatch(value) or not least <= int(value) <= most:
        raise bad(name)
    return int(value)


def _number(
    setting: str, least: int, most: int, kind: type[int] | type[float] = float
) -> Callable[..., dict[str, Any]]:
    return lambda name, value: {setting: kind(_whole(name, value, least, most))}


def _is_true(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise bad(name)
    return value == "true"


def _scope(name: str, value: str) -> dict[str, Any]:
    if value not in _SCOPES:
        raise bad(name)
    return {"dedup_scope": _SCOPES[value]}


def _check_limit(name: str, value: str) -> None:
    if value not in ("perQueue", "perMessageGroupId"):
        raise bad(name)


def _check_allowance(name: str, value: str) -> None:
    unsupported = "Amazon SQS can't create the redrive allow policy, as it's in an unsupported format."
    try:
        policy = json.loads(value or "{}")
    except (ValueError, RecursionError):
        raise invalid(value, name, unsupported) from None
    if value and not (
        isinstance(policy, dict) and policy.get("redrivePermission") in ("allowAll", "denyAll", "byQueue")
    ):
        raise invalid(value, name, unsupported)


def _check_key(name: str, value: str) -> None:
    if len(value) > 2048:
        raise invalid_value(f"The value of {name} is too long.")


def _seconds(value: float) -> str:
    return str(math.ceil(value))


_SETTINGS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "VisibilityTimeout": _number("lease", 0, 43_200),
    "DelaySeconds": _number("delay", 0, 900),
    "ReceiveMessageWaitTimeSeconds": _number("wait", 0, 20),
    "MaximumMessageSize": _number("max_message_bytes", 1024, MOST_BYTES, int),
    "MessageRetentionPeriod": _number("retention", 60, _MOST_RETENTION),
    "ContentBasedDeduplication": lambda name, value: {"dedup_content": _is_true(name, value)},
    "DeduplicationScope": _scope,
}
_TEXTS: dict[str, Callable[[str, str], object]] = {
    "Policy": check_policy,
    "FifoThroughputLimit": _check_limit,
    "RedriveAllowPolicy": _check_allowance,
    "KmsMasterKeyId": _check_key,
    "KmsDataKeyReusePeriodSeconds": lambda name, value: _whole(name, value, 60, 86_400),
    "SqsManagedSseEnabled": _is_true,
}
_KNOWN = {"All", "FifoQueue", "RedrivePolicy", *_READ_ONLY, *_SETTINGS, *_TEXTS}
