"""Messages: from a request to the store, and from the store to a reply."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from storage.errors import InvalidInput
from storage.literals import decode
from storage.model import Message, NewMessage, QueueSettings
from storage.validation import MAX_ATTRIBUTES_LARGE
from web.sqs import message_attributes
from web.sqs.errors import invalid, invalid_value, missing
from web.sqs.message_attributes import MOST_TRACE, TRACE, Attributes
from web.sqs.names import ACCOUNT, arn_of, is_fifo
from web.sqs.parameters import Parameters, check_characters

MOST_BYTES = 1_048_576  # of a message, and of a batch
MOST_DELAY = 900  # seconds

_NAMES_OF_A_TEXT = frozenset({"QueueUrl", "Id", "MessageBody"})
_UNLIMITED = QueueSettings()
_VARIANTS = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}  # of UUIDs
_IDENTIFIER = re.compile(r"[\x21-\x7e]{1,128}")  # of a group, a deduplication or an attempt


class SettingsNeeded(Exception):
    """A message cannot be checked without its queue's settings."""


class Outgoing(NamedTuple):
    """A checked message of a request."""

    message: NewMessage
    attributes: Attributes
    system_attributes: Attributes

    def receipt(self, message_id: str, sequence_number: str | None) -> dict[str, str]:
        """Return the members of the reply to a sent message."""
        members = {"MD5OfMessageBody": _md5(self.message.text), "MessageId": message_id}
        if self.attributes:
            members["MD5OfMessageAttributes"] = message_attributes.md5(self.attributes)
        if self.system_attributes:
            members["MD5OfMessageSystemAttributes"] = message_attributes.md5(self.system_attributes)
        if sequence_number is not None:
            members["SequenceNumber"] = sequence_number
        return members


def outgoing(queue: str, settings: QueueSettings | None, parameters: Parameters, trace: str | None) -> Outgoing:
    """Return the message to send to a queue. `trace` is that of the request's header. Raises SqsError.

    Without the settings of a standard queue, raise SettingsNeeded for attributes: the store does not count their bytes.
    """
    body = parameters.required("MessageBody")
    if settings is None:
        if "MessageAttributes" in parameters:
            raise SettingsNeeded
        if trace is None and parameters.are_among(_NAMES_OF_A_TEXT):
            _check_body(body, 0, MOST_BYTES)
            return Outgoing(NewMessage(body), {}, {})
        settings = _UNLIMITED
    attributes = message_attributes.read(parameters)
    _check_body(body, message_attributes.size(attributes), settings.max_message_bytes or MOST_BYTES)
    system_attributes = message_attributes.read_system(parameters)
    delay = parameters.number("DelaySeconds", 0, MOST_DELAY, "DelaySeconds must be >= 0 and <= 900.")
    document: dict[str, Any] = {"text": body} | message_attributes.stored(attributes)
    document |= _fifo(settings, parameters, delay) if is_fifo(queue) else _standard(parameters, delay)
    if TRACE in system_attributes:
        document["trace"] = system_attributes[TRACE].value
    elif trace and len(trace) <= MOST_TRACE:
        document["trace"] = trace
    try:
        message = NewMessage.from_document(document, most_attributes=MAX_ATTRIBUTES_LARGE)
    except InvalidInput as fault:
        raise invalid_value(str(fault)) from None
    return Outgoing(message, attributes, system_attributes)


def sent_size(parameters: Parameters) -> int:
    """Return the bytes of a message that a batch is to send, whether or not it is valid."""
    size = _bytes_of(parameters.text("MessageBody") or "")
    if "MessageAttributes" not in parameters:
        return size
    for name, parts in parameters.objects("MessageAttributes"):
        values = [parts.text(member) or "" for member in ("DataType", "StringValue")]
        size += sum(map(_bytes_of, (name, *values))) + len(parts.text("BinaryValue") or "") * 3 // 4
    return size


def check_group(settings: QueueSettings, parameters: Parameters) -> None:
    """Raise SqsError if a message for a FIFO queue names no group, or no deduplication id where one is needed."""
    if not parameters.text("MessageDeduplicationId") and not settings.dedup_content:
        raise invalid_value(
            "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided "
            "explicitly"
        )
    if not parameters.text("MessageGroupId"):
        raise invalid_value("The request must contain the parameter MessageGroupId.")


def check_identifier(name: str, value: str | None) -> str | None:
    """Return the value if it is None or valid. Raises SqsError."""
    if value is not None and not _IDENTIFIER.fullmatch(value):
        reason = f"{name} can only include alphanumeric and punctuation characters. 1 to 128 in length."
        raise invalid(value, name, reason)
    return value


def message_id(identity: bytes, queue: str, number: int) -> str:
    """Return the UUID of a message that first had this number in this queue of this store."""
    digest = hashlib.sha256(identity + f"{queue}~{number}".encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-{_VARIANTS[digest[16]]}{digest[17:20]}-{digest[20:32]}"


def sequence_number(number: int) -> str:
    return f"{number:020}"


class Reading(NamedTuple):
    """How a reader wants its messages."""

    identity: bytes
    region: str
    clean: Callable[[str], str]
    system_names: frozenset[str]
    names: list[str]


def received(message: Message, reading: Reading) -> dict[str, Any]:
    """Return a message as a reply has it."""
    body = reading.clean(message.text)
    members: dict[str, Any] = {
        "MessageId": message_id(reading.identity, *message.first),
        "ReceiptHandle": message.receipt,
        "MD5OfBody": _md5(body),
        "Body": body,
    }
    if not (reading.system_names or reading.names):
        return members
    fields = decode(message.fields) if message.fields else {}
    if reading.system_names and (chosen := _chosen(_system_attributes(message, fields, reading), reading.system_names)):
        members["Attributes"] = chosen
    is_dead = message.deaths is not None
    attributes = message_attributes.restored(fields, is_dead=is_dead, clean=reading.clean) if reading.names else {}
    if wanted := message_attributes.chosen(attributes, reading.names):
        members["MD5OfMessageAttributes"] = message_attributes.md5(wanted)
        members["MessageAttributes"] = {name: one.written() for name, one in wanted.items()}
    return members


def _check_body(body: str, size_of_attributes: int, most: int) -> None:
    """Raise SqsError if a text is too long, together with the attributes, or has characters that none may have."""
    if _bytes_of(body) + size_of_attributes > most:
        raise invalid_value(f"One or more parameters are invalid. Reason: Message must be shorter than {most} bytes.")
    check_characters(body, "InvalidMessageContents")


def _fifo(settings: QueueSettings, parameters: Parameters, delay: int | None) -> dict[str, Any]:
    group = check_identifier("MessageGroupId", parameters.text("MessageGroupId"))
    dedup_id = check_identifier("MessageDeduplicationId", parameters.text("MessageDeduplicationId"))
    if delay:
        raise invalid(delay, "DelaySeconds", "The request include parameter that is not valid for this queue type.")
    if group is None:
        raise missing("MessageGroupId")
    check_group(settings, parameters)
    return {"key": group} | ({"dedup_id": dedup_id} if dedup_id else {})


def _standard(parameters: Parameters, delay: int | None) -> dict[str, Any]:
    members: dict[str, Any] = {} if delay is None else {"delay": delay}
    if (dedup_id := parameters.text("MessageDeduplicationId")) is not None:
        reason = "The request includes a parameter that is not valid for this queue type."
        raise invalid(dedup_id, "MessageDeduplicationId", reason)
    group = check_identifier("MessageGroupId", parameters.text("MessageGroupId"))
    return members | ({"group": group} if group else {})


def _system_attributes(message: Message, fields: dict[str, Any], reading: Reading) -> dict[str, str]:
    found = {
        "SenderId": ACCOUNT,
        "SentTimestamp": str(message.sent_at),
        "ApproximateReceiveCount": str(message.total_receive_count),
        "ApproximateFirstReceiveTimestamp": str(message.first_received_at or message.sent_at),
    }
    group = fields.get("key") if is_fifo(message.queue) else fields.get("group")
    if group is not None:
        found["MessageGroupId"] = reading.clean(group)
    if is_fifo(message.queue):
        dedup_id = fields.get("dedup_id") or hashlib.sha256(message.text.encode()).hexdigest()
        found |= {"MessageDeduplicationId": reading.clean(dedup_id), "SequenceNumber": sequence_number(message.id)}
    if "trace" in fields:
        found[TRACE] = reading.clean(fields["trace"])
    if message.origin is not None:
        found["DeadLetterQueueSourceArn"] = arn_of(reading.region, message.origin)
    return found


def _chosen(attributes: dict[str, str], names: Iterable[str]) -> dict[str, str]:
    return attributes if "All" in names else {name: value for name, value in attributes.items() if name in names}


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
