"""Actions on messages: send, receive, delete, and change for how long they are invisible."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from storage.errors import MessageNotFound, StaleReceipt, TooManyPollers
from storage.model import IdempotencyKey, Receipt, Receive, Sent
from web.sqs import messages
from web.sqs.call import DONE, Call, Result
from web.sqs.errors import SqsError, invalid, missing
from web.sqs.messages import MOST_BYTES, Outgoing
from web.sqs.names import is_fifo
from web.sqs.parameters import Parameters

MOST_ENTRIES = 10
MOST_VISIBILITY = 43_200  # seconds
_ENTRY_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_PAUSE = 0.2  # seconds before the empty reply to a reader that may not wait, because too many do
_EXPIRED = "The receipt handle has expired."
_NOT_CHANGED = "Message does not exist or is not available for visibility timeout change."


def send_message(call: Call) -> Result:
    queue = call.queue
    one = messages.outgoing(queue, call.store.settings(queue), call.parameters, call.trace)
    sent = call.store.send(queue, [one.message], create=False)
    return _receipts(call, queue, [one], sent)[0]


def send_message_batch(call: Call) -> Result:
    queue = call.queue
    settings, entries = call.store.settings(queue), _entries(call)
    if is_fifo(queue):
        for entry in entries:
            messages.check_group(settings, entry)
    if (size := sum(map(messages.sent_size, entries))) > MOST_BYTES:
        detail = f"Batch requests cannot be longer than {MOST_BYTES} bytes. You have sent {size} bytes."
        raise SqsError("BatchRequestTooLong", detail)
    outgoing = dict[str, Outgoing]()

    def check(entry: Parameters) -> None:
        outgoing[entry.required("Id")] = messages.outgoing(queue, settings, entry, call.trace)

    results = _each(entries, check)
    if outgoing:
        good = list(outgoing.values())
        sent = call.store.send(queue, [one.message for one in good], create=False)
        receipts = dict(zip(outgoing, _receipts(call, queue, good, sent), strict=True))
        results["Successful"] = [one | receipts[one["Id"]] for one in results["Successful"]]
    return results


def receive_message(call: Call) -> Result:
    queue, asked = call.queue, call.parameters
    limit = asked.number("MaxNumberOfMessages", 1, 10, "Must be between 1 and 10, if provided.")
    wait, lease = asked.number("WaitTimeSeconds", 0, 20), asked.number("VisibilityTimeout", 0, MOST_VISIBILITY)
    names = frozenset(asked.texts("AttributeNames") + asked.texts("MessageSystemAttributeNames"))
    reading = messages.Reading(
        call.store.identity, call.region, call.protocol.clean, names, asked.texts("MessageAttributeNames")
    )
    ask = Receive(
        queues=(queue,),
        limit=limit or 1,
        lease="default" if lease is None else lease,
        wait=call.store.settings(queue).wait if wait is None else wait,
        must_exist=True,
    )
    try:
        found = call.store.receive(ask, _attempt(call, queue), call.present)
    except TooManyPollers:
        call.pause(_PAUSE)
        found = ()
    if not found:
        return {}
    return call.build(lambda: {"Messages": [messages.received(message, reading) for message in found]})


def delete_message(call: Call) -> Result:
    queue, handle = call.queue, call.parameters.required("ReceiptHandle")
    _check_handle(call, queue, handle)
    try:
        call.store.settle(handle, queue, held=is_fifo(queue))
    except MessageNotFound:
        call.store.settings(queue)  # raises QueueNotFound
    except StaleReceipt:
        if is_fifo(queue):
            raise invalid(handle, "ReceiptHandle", _EXPIRED) from None
    return DONE


def delete_message_batch(call: Call) -> Result:
    queue, entries = call.queue, _entries(call)
    call.store.settings(queue)
    handles = _handles(call, queue, entries)
    stale = set[str]()
    if handles:
        stale.update(call.store.ack(list(handles.values()), queue, held=is_fifo(queue)).stale)

    def check(entry: Parameters) -> None:
        handle = entry.required("ReceiptHandle")
        _check_handle(call, queue, handle)
        if handle in stale and is_fifo(queue):
            raise invalid(handle, "ReceiptHandle", _EXPIRED)

    return _each(entries, check)


def change_message_visibility(call: Call) -> Result:
    queue = call.queue
    _change_visibility(call, queue, call.parameters)
    return DONE


def change_message_visibility_batch(call: Call) -> Result:
    queue, entries = call.queue, _entries(call)
    call.store.settings(queue)
    return _each(entries, lambda entry: _change_visibility(call, queue, entry))


def _change_visibility(call: Call, queue: str, parameters: Parameters) -> None:
    handle = parameters.required("ReceiptHandle")
    seconds = parameters.number("VisibilityTimeout", 0, MOST_VISIBILITY)
    if seconds is None:
        raise missing("VisibilityTimeout")
    _check_handle(call, queue, handle)
    try:
        if seconds:
            call.store.extend(handle, seconds, queue)
        else:
            call.store.release(handle, 0.0, queue)
    except (MessageNotFound, StaleReceipt):
        call.store.settings(queue)  # raises QueueNotFound
        raise invalid(handle, "ReceiptHandle", _NOT_CHANGED) from None


def _attempt(call: Call, queue: str) -> IdempotencyKey | None:
    """Return the key by which a repeated receive from a FIFO queue gets the same messages."""
    attempt = messages.check_identifier(
        "ReceiveRequestAttemptId", call.parameters.text("ReceiveRequestAttemptId") if is_fifo(queue) else None
    )
    return None if attempt is None else IdempotencyKey(f"{call.token or ''} attempt {attempt}", b"")


def _receipts(call: Call, queue: str, outgoing: Sequence[Outgoing], sent: Sent) -> list[dict[str, str]]:
    fifo, identity = is_fifo(queue), call.store.identity
    return [
        one.receipt(messages.message_id(identity, queue, number), messages.sequence_number(number) if fifo else None)
        for one, number in zip(outgoing, sent.ids, strict=True)
    ]


def _check_handle(call: Call, queue: str, handle: str) -> None:
    """Raise SqsError unless the handle is that of a message which the queue has or had."""
    try:
        if Receipt.parse(handle, 1).queue == queue:
            return
    except MessageNotFound:
        pass
    call.store.settings(queue)  # raises QueueNotFound
    raise SqsError("ReceiptHandleIsInvalid", f'The input receipt handle "{handle}" is not a valid receipt handle.')


def _handles(call: Call, queue: str, entries: Iterable[Parameters]) -> dict[str, str]:
    """Return the valid handles of a batch by the ids of their entries."""
    handles = {}

    def note(entry: Parameters) -> None:
        handle = entry.required("ReceiptHandle")
        _check_handle(call, queue, handle)
        handles[entry.required("Id")] = handle

    _each(entries, note)
    return handles


def _entries(call: Call) -> list[Parameters]:
    """Return the entries of a batch. Raises SqsError."""
    entries = call.parameters.entries()
    if not entries:
        kind = f"{call.action}RequestEntry"
        raise SqsError("EmptyBatchRequest", f"There should be at least one {kind} in the request.")
    if len(entries) > MOST_ENTRIES:
        detail = f"Maximum number of entries per request are {MOST_ENTRIES}. You have sent {len(entries)}."
        raise SqsError("TooManyEntriesInBatchRequest", detail)
    ids = set[str]()
    for entry in entries:
        entry_id = entry.text("Id") or ""
        if not _ENTRY_ID.fullmatch(entry_id):
            raise SqsError(
                "InvalidBatchEntryId",
                "A batch entry id can only contain alphanumeric characters, hyphens and underscores. "
                "It can be at most 80 letters long.",
            )
        if entry_id in ids:
            raise SqsError("BatchEntryIdsNotDistinct", f"Id {entry_id} repeated.")
        ids.add(entry_id)
    return entries


def _each(entries: Iterable[Parameters], run: Callable[[Parameters], None]) -> dict[str, Any]:
    """Run each entry of a batch by itself; return the results, in order."""
    successful, failed = list[dict[str, Any]](), list[dict[str, Any]]()
    for entry in entries:
        try:
            run(entry)
            successful.append({"Id": entry.text("Id")})
        except SqsError as fault:
            sender = fault.fault == "Sender"
            failed.append({"Id": entry.text("Id"), "SenderFault": sender, "Code": fault.code, "Message": str(fault)})
    return ({"Successful": successful} if successful else {}) | ({"Failed": failed} if failed else {})
