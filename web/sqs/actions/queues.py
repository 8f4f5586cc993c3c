"""Actions on queues: create, find, list, describe, change, purge and delete them."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from storage.errors import InvalidInput, PreconditionFailed, QueueNotFound
from storage.model import QueueSettings
from storage.validation import MAX_PAGE, QUEUE_NAME
from web.sqs import queue_attributes, redrive_policy
from web.sqs.actions import tags
from web.sqs.call import DONE, Call, Result, edit
from web.sqs.errors import SqsError, invalid, invalid_value, missing
from web.sqs.names import check_new_name, name_in_url


def create_queue(call: Call) -> Result:
    name, attributes = call.parameters.required("QueueName"), call.parameters.strings("Attributes")
    fifo = attributes.get("FifoQueue") == "true"
    check_new_name(name, fifo=fifo)
    present = _present_settings(call, name)
    if present is None:
        changes = _checked_changes(call, name, attributes, QueueSettings())
        defaults = queue_attributes.NEW_FIFO_QUEUE if fifo else queue_attributes.NEW_QUEUE
        given_tags = tags.read(call.parameters, "tags")
        try:
            with _policy_errors(attributes):
                call.store.configure(name, defaults | changes | ({"tags": given_tags} if given_tags else {}), 0)
            return {"QueueUrl": call.url_of(name)}
        except PreconditionFailed:  # another client has created it
            present = call.store.settings(name)
    _check_same(call, name, attributes, present)
    return {"QueueUrl": call.url_of(name)}


def get_queue_url(call: Call) -> Result:
    name = name_in_url(call.parameters.required("QueueName"))
    call.store.settings(name)
    return {"QueueUrl": call.url_of(name)}


def list_queues(call: Call) -> Result:
    prefix = call.parameters.text("QueueNamePrefix") or ""
    if prefix and not QUEUE_NAME.fullmatch(prefix):
        return {}
    names, token = _page(call, lambda after, limit: call.store.names(prefix, after, limit))
    return ({"QueueUrls": [call.url_of(name) for name in names]} if names else {}) | token


def list_dead_letter_source_queues(call: Call) -> Result:
    queue = call.queue
    call.store.settings(queue)
    names, token = _page(call, lambda after, limit: call.store.sources(queue, after, limit))
    return {"queueUrls": [call.url_of(name) for name in names]} | token


def delete_queue(call: Call) -> Result:
    try:
        call.store.delete_queue(call.queue)
    except InvalidInput as fault:
        raise SqsError("UnsupportedOperation", str(fault)) from None
    return DONE


def purge_queue(call: Call) -> Result:
    call.store.purge(call.queue)
    return DONE


def get_queue_attributes(call: Call) -> Result:
    queue, names = call.store.queue(call.queue), call.parameters.texts("AttributeNames")
    found = queue_attributes.described(queue, names, call.region)
    return {"Attributes": found} if found else {}


def set_queue_attributes(call: Call) -> Result:
    queue, attributes = call.queue, call.parameters.strings("Attributes")
    if "Attributes" not in call.parameters:
        call.store.settings(queue)
        raise missing("Attributes")
    with _policy_errors(attributes):
        edit(call.store, queue, lambda found: _checked_changes(call, queue, attributes, found.settings))
    return DONE


def _present_settings(call: Call, name: str) -> QueueSettings | None:
    try:
        return call.store.settings(name)
    except QueueNotFound:
        return None


def _check_same(call: Call, name: str, attributes: Mapping[str, str], present: QueueSettings) -> None:
    """Raise SqsError if an attribute of a request to create a queue differs from that of the present queue."""
    wanted = present.changed(queue_attributes.changes(name, attributes, present))
    before = queue_attributes.settings_described(name, present, call.region)
    after = queue_attributes.settings_described(name, wanted, call.region)
    for attribute in attributes:
        if before.get(attribute) != after.get(attribute):
            raise SqsError(
                "QueueNameExists",
                f"A queue already exists with the same name and a different value for attribute {attribute}",
            )


def _checked_changes(call: Call, name: str, attributes: Mapping[str, str], settings: QueueSettings) -> dict[str, Any]:
    """Return the changes of settings, once the dead-letter queue that they name exists."""
    changes = queue_attributes.changes(name, attributes, settings)
    if target := changes.get("dead_letter_queue"):
        try:
            call.store.settings(target)
        except QueueNotFound:
            raise redrive_policy.no_target(attributes[redrive_policy.NAME]) from None
    return changes


@contextmanager
def _policy_errors(attributes: Mapping[str, str]) -> Iterator[None]:
    """Return the store's refusal of a dead-letter queue as an error of the policy."""
    try:
        yield
    except InvalidInput as fault:
        if fault.field != "dead_letter_queue":
            raise
        raise invalid(attributes.get(redrive_policy.NAME, ""), redrive_policy.NAME, f"{fault}.") from None


def _page(call: Call, names: Callable[[str, int], list[str]]) -> tuple[list[str], Result]:
    """Return a page of names, and the member NextToken if the client asked for pages and another one follows."""
    limit = call.parameters.number("MaxResults", 1, MAX_PAGE, "Must be between 1 and 1000, if provided.")
    after = _after(call.parameters.text("NextToken"))
    found = names(after, limit or MAX_PAGE)
    if limit is None or len(found) < limit or not names(found[-1], 1):
        return found, {}
    return found, {"NextToken": urlsafe_b64encode(found[-1].encode()).decode()}


def _after(token: str | None) -> str:
    if not token:
        return ""
    try:
        name = urlsafe_b64decode(token.encode()).decode()
    except (binascii.Error, ValueError):
        name = ""
    if not QUEUE_NAME.fullmatch(name):
        raise invalid_value("Invalid or expired next token.")
    return name
