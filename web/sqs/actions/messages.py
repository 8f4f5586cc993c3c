"""Actions on messages: send, receive, delete, and change for how long they are invisible."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TypeVar

from storage.errors import InvalidInput, MessageNotFound, StaleReceipt, TooManyPollers
from storage.model import AckResult, IdempotencyKey, QueueSettings, Receipt, Receive
from web.access.authentication import Forbidden
from web.native.request import connection_check, holder
from web.sqs import messages
from web.sqs.call import DONE, Call, Result
from web.sqs.errors import SqsError, invalid, missing
from web.sqs.messages import MOST_BYTES, Outgoing, SettingsNeeded
from web.sqs.names import is_fifo
from web.sqs.parameters import Parameters

T = TypeVar("T")
U = TypeVar("U")
Failures = dict[str, SqsError]  # of a batch's entries, by their ids

MOST_ENTRIES = 10
MOST_VISIBILITY = 43_200  # seconds
_ENTRY_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_PAUSE = 0.2  # seconds before the empty reply to a reader that may not wait, because too many do
_EXPIRED = "The receipt handle has expired."
_NOT_CHANGED = "Message does not exist or is not available for visibility timeout change."


def send_message(call: Call) -> Result:
    queue = call.queue

    def send(settings: QueueSettings | None) -> Result:
        return _send(call, queue, [messages.outgoing(queue, settings, call.parameters, call.trace)])[0]

    return _with_settings_if_needed(call, queue, send)


def send_message_batch(call: Call) -> Result:
    queue = call.queue
    return _with_settings_if_needed(call, queue, partial(_send_batch, call, queue))


def _send_batch(call: Call, queue: str, settings: QueueSettings | None) -> Result:
    entries = _entries(call)
    if settings and is_fifo(queue):
        for entry in entries.values():
            messages.check_group(settings, entry)
    if (size := sum(map(messages.sent_size, entries.values()))) > MOST_BYTES:
        detail = f"Batch requests cannot be longer than {MOST_BYTES} bytes. You have sent {size} bytes."
        raise SqsError("BatchRequestTooLong", detail)
    good, failures = _each(entries, lambda entry: messages.outgoing(queue, settings, entry, call.trace))
    if failures and settings is None:
        raise SettingsNeeded  # another error may come first
    sent = _send(call, queue, good.values()) if good else []
    successful = [{"Id": name} | members for name, members in zip(good, sent, strict=True)]
    return _results(entries, successful, failures)


def _with_settings_if_needed(call: Call, queue: str, send: Callable[[QueueSettings | None], Result]) -> Result:
    """Send to a standard queue without its settings. If they are needed, or there is an error, send with them.

    The store itself checks that the queue exists, and the length of a text. Only with settings is an error the first.
    """
    if not is_fifo(queue):
        with suppress(SettingsNeeded, SqsError, InvalidInput, Forbidden):
            return send(None)
    return send(call.store.settings(queue))


def receive_message(call: Call) -> Result:
    queue, asked = call.queue, call.parameters
    limit = asked.number("MaxNumberOfMessages", 1, 10, "Must be between 1 and 10, if provided.")
    wait, lease = asked.number("WaitTimeSeconds", 0, 20), asked.number("VisibilityTimeout", 0, MOST_VISIBILITY)
    names = frozenset(asked.texts("AttributeNames") + asked.texts("MessageSystemAttributeNames"))
    region = call.region if names else ""
    reading = messages.Reading(
        call.store.identity, region, call.protocol.clean, names, asked.texts("MessageAttributeNames")
    )
    ask = Receive(
        queues=(queue,),
        limit=limit or 1,
        lease="default" if lease is None else lease,
        wait=wait or 0.0,
        must_exist=True,
        holder=holder(call.environ),
    )
    attempt, present = _attempt(call, queue), connection_check(call.environ)
    try:
        found = call.store.receive(ask, attempt, present)
        if not found and wait is None and (most := call.store.settings(queue).wait):
            found = call.store.receive(ask._replace(wait=most), attempt, present)
    except TooManyPollers:
        call.service.scheduler.current().wait(_PAUSE)
        found = ()
    if not found:
        return {}
    return call.service.build(lambda: {"Messages": [messages.received(message, reading) for message in found]})


def delete_message(call: Call) -> Result:
    queue, handle = call.queue, call.parameters.required("ReceiptHandle")
    try:
        if not _may_be_of(queue, handle):
            raise MessageNotFound
        call.store.settle(handle, queue, held=is_fifo(queue))
    except MessageNotFound:
        call.store.settings(queue)  # raises QueueNotFound
        _check_handle(queue, handle)
    except StaleReceipt:
        if is_fifo(queue):
            raise invalid(handle, "ReceiptHandle", _EXPIRED) from None
    return DONE


def delete_message_batch(call: Call) -> Result:
    queue, entries = call.queue, _entries(call)
    handles, failures = _each(entries, lambda entry: entry.required("ReceiptHandle"))
    possible = [handle for handle in handles.values() if _may_be_of(queue, handle)]
    result = call.store.ack(possible, queue, held=is_fifo(queue)) if possible else AckResult(0, [], [])
    if not result.acked:
        call.store.settings(queue)  # raises QueueNotFound
    settled = {*possible}.difference(result.stale, result.missing)

    def check(handle: str) -> None:
        if handle not in settled:
            _check_handle(queue, handle)
            if handle in result.stale and is_fifo(queue):
                raise invalid(handle, "ReceiptHandle", _EXPIRED)

    deleted, more_failures = _each(handles, check)
    return _results(entries, [{"Id": name} for name in deleted], failures | more_failures)


def change_message_visibility(call: Call) -> Result:
    _change_visibility(call, call.queue, call.parameters)
    return DONE


def change_message_visibility_batch(call: Call) -> Result:
    queue, entries = call.queue, _entries(call)
    changed, failures = _each(entries, lambda entry: _change_visibility(call, queue, entry))
    if not changed:
        call.store.settings(queue)  # raises QueueNotFound
    return _results(entries, [{"Id": name} for name in changed], failures)


def _change_visibility(call: Call, queue: str, parameters: Parameters) -> None:
    handle = parameters.required("ReceiptHandle")
    seconds = parameters.number("VisibilityTimeout", 0, MOST_VISIBILITY)
    if seconds is None:
        raise missing("VisibilityTimeout")
    try:
        if not _may_be_of(queue, handle):
            raise MessageNotFound
        if seconds:
            call.store.extend(handle, seconds, queue)
        else:
            call.store.release(handle, 0.0, queue)
    except (MessageNotFound, StaleReceipt):
        call.store.settings(queue)  # raises QueueNotFound
        _check_handle(queue, handle)
        raise invalid(handle, "ReceiptHandle", _NOT_CHANGED) from None


def _send(call: Call, queue: str, outgoing: Collection[Outgoing]) -> list[dict[str, str]]:
    """Send checked messages; return the members of their results."""
    sent = call.store.send(queue, [one.message for one in outgoing], create=False)
    fifo, identity = is_fifo(queue), call.store.identity
    return [
        one.receipt(messages.message_id(identity, queue, number), messages.sequence_number(number) if fifo else None)
        for one, number in zip(outgoing, sent.ids, strict=True)
    ]


def _attempt(call: Call, queue: str) -> IdempotencyKey | None:
    """Return the key by which a repeated receive from a FIFO queue gets the same messages."""
    attempt = messages.check_identifier(
        "ReceiveRequestAttemptId", call.parameters.text("ReceiveRequestAttemptId") if is_fifo(queue) else None
    )
    return None if attempt is None else IdempotencyKey(f"{call.token or ''} attempt {attempt}", b"")


def _may_be_of(queue: str, handle: str) -> bool:
    """Return whether the handle may be that of one message of the queue. The store parses it."""
    return handle.startswith(f"{queue}~") and "-" not in handle[len(queue) :]


def _check_handle(queue: str, handle: str) -> None:
    """Raise SqsError unless the handle, which the store did not find, is that of a message which the queue had."""
    try:
        if _may_be_of(queue, handle) and Receipt.parse(handle, 1):
            return
    except MessageNotFound:
        pass
    raise SqsError("ReceiptHandleIsInvalid", f'The input receipt handle "{handle}" is not a valid receipt handle.')


def _entries(call: Call) -> dict[str, Parameters]:
    """Return the entries of a batch by their ids. Raises SqsError."""
    entries = call.parameters.entries()
    if not entries:
        kind = f"{call.action}RequestEntry"
        raise SqsError("EmptyBatchRequest", f"There should be at least one {kind} in the request.")
    if len(entries) > MOST_ENTRIES:
        detail = f"Maximum number of entries per request are {MOST_ENTRIES}. You have sent {len(entries)}."
        raise SqsError("TooManyEntriesInBatchRequest", detail)
    found: dict[str, Parameters] = {}
    for entry in entries:
        entry_id = entry.text("Id") or ""
        if not _ENTRY_ID.fullmatch(entry_id):
            raise SqsError(
                "InvalidBatchEntryId",
                "A batch entry id can only contain alphanumeric characters, hyphens and underscores. "
                "It can be at most 80 letters long.",
            )
        if entry_id in found:
            raise SqsError("BatchEntryIdsNotDistinct", f"Id {entry_id} repeated.")
        found[entry_id] = entry
    return found


def _each(entries: Mapping[str, T], run: Callable[[T], U]) -> tuple[dict[str, U], Failures]:
    """Run each entry of a batch by itself; return the results and the errors, by the entries' ids."""
    results, failures = dict[str, U](), Failures()
    for entry_id, entry in entries.items():
        try:
            results[entry_id] = run(entry)
        except SqsError as fault:
            failures[entry_id] = fault
    return results, failures


def _results(entries: Iterable[str], successful: list[dict[str, str]], failures: Failures) -> Result:
    """Return the reply to a batch of these ids."""
    failed = [
        {"Id": name, "SenderFault": fault.fault == "Sender", "Code": fault.code, "Message": str(fault)}
        for name in entries
        if (fault := failures.get(name))
    ]
    return ({"Successful": successful} if successful else {}) | ({"Failed": failed} if failed else {})
