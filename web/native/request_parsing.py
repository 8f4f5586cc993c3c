"""Parse each route's query and body into arguments of the store. Each function raises InvalidInput."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from storage.errors import InvalidInput, MessageNotFound
from storage.model import NewMessage, Receive, State
from storage.store import Peek
from storage.validation import (
    MAX_BATCH,
    MAX_LEASE,
    MAX_LIMIT,
    MAX_NAME,
    MAX_PAGE,
    MAX_REASON,
    MAX_SEARCH,
    MAX_WAIT,
    check_name,
    check_queue_name,
    milliseconds,
)
from web.native.decoding import parse_json
from web.native.request import JSON, Environ, Query, UnsupportedMediaType, holder, media_type

ANY = "any"  # the only value of `recipients`

ID = re.compile(r"[1-9][0-9]{0,18}")
MAX_ID = 2**63 - 2  # one less than the largest, so that `after` and `before` can lie beyond it


class Ask(NamedTuple):
    """A read. `batch`: the reader set a `limit`, so the reply is an array."""

    receive: Receive
    batch: bool


class LeaseChange(NamedTuple):
    """A change by receipt, in seconds: extend the lease, release (lease 0) or dead-letter the message."""

    lease: float = 0.0
    delay: float = 0.0
    counted: bool = True
    dead: bool = False
    reason: str = ""


class MessageChange(NamedTuple):
    """A change by id: a new delay in seconds, or None to dead-letter the message."""

    delay: float | None
    reason: str = ""


class Extension(NamedTuple):
    receipts: list[str]
    lease: float


class Redrive(NamedTuple):
    """Which dead letters to move; None: all."""

    limit: int | None = None
    ids: list[int] | None = None
    reason: str | None = None


class Purge(NamedTuple):
    """Which messages to remove; None: all."""

    ids: list[int] | None = None
    reason: str | None = None


class Page(NamedTuple):
    """A page of the list of queues."""

    prefix: str
    after: str
    limit: int


class Transaction(NamedTuple):
    ack: list[str]
    send: list[tuple[str, NewMessage]]
    receive: Receive | None


def nothing(environ: Environ) -> None:
    """Refuse any query parameter."""
    if query := environ.get("QUERY_STRING", ""):
        Query(query).done()


def queue_or_none(name: str | None) -> str | None:
    """Return the checked queue name of a route's path, or None if it has none."""
    return None if name is None else check_queue_name(name)


def ask(environ: Environ, queue: str | None) -> Ask:
    """Return the read of a queue's own route, or (queue None) of /messages, which accepts `queue` parameters."""
    asked = _ask(environ.get("QUERY_STRING", ""), queue)
    if asked.receive.lease is None:
        return asked
    return Ask(asked.receive._replace(holder=holder(environ)), asked.batch)


@lru_cache(maxsize=256)  # a reader repeats its request
def _ask(raw: str, queue: str | None) -> Ask:
    query = Query(raw)
    names = tuple(dict.fromkeys(query.many("queue"))) or ("default",) if queue is None else (queue,)
    limit = query.whole("limit", 1, MAX_LIMIT)
    wait = query.number("wait", 0, MAX_WAIT)
    recipient = _recipient(query.one("recipient"), query.one("recipients"))
    lease = query.number_or("lease", 1, MAX_LEASE, "default")
    query.done()
    receive = Receive(
        tuple(check_queue_name(name) for name in names),
        limit or 1,
        lease,
        recipient,
        wait or 0.0,
    )
    return Ask(receive, batch=limit is not None)


def peek(environ: Environ) -> Peek:
    query = Query(environ.get("QUERY_STRING", ""))
    limit, after = query.whole("limit", 1, MAX_LIMIT), query.whole("after", 0, 2**63 - 1)
    before, state = query.whole("before", 0, 2**63 - 1), query.one("state")
    if state is not None and state not in list(State):
        raise InvalidInput(f"'state' must be one of {', '.join(State)}", field="state")
    key, text, reason = (
        None if (value := query.one(name)) is None else check_name(name, value, most)
        for name, most in (("key", MAX_NAME), ("text", MAX_SEARCH), ("reason", MAX_REASON))
    )
    query.done()
    return Peek(limit or 100, after or 0, before, None if state is None else State(state), key, text, reason)


def page(environ: Environ) -> Page:
    query = Query(environ.get("QUERY_STRING", ""))
    prefix, after, limit = query.one("prefix"), query.one("after"), query.whole("limit", 1, MAX_PAGE)
    query.done()
    for name, value in (("prefix", prefix), ("after", after)):
        if value:
            check_queue_name(value, name)
    return Page(prefix or "", after or "", limit or MAX_PAGE)


def message_id(text: str) -> int:
    """Return the id. Raises MessageNotFound for digits that cannot be one."""
    if not ID.fullmatch(text) or int(text) > MAX_ID:
        raise MessageNotFound
    return int(text)


def receipts(environ: Environ, body: bytes) -> list[str]:
    return _receipts(_object(environ, body, "receipts"), "receipts", least=1)


def extension(environ: Environ, body: bytes) -> Extension:
    document = _object(environ, body, "receipts", "lease")
    lease = milliseconds(document.get("lease"), "lease", least=1, most=MAX_LEASE) / 1000
    return Extension(_receipts(document, "receipts", least=1), lease)


def lease_change(environ: Environ, body: bytes) -> LeaseChange:
    change = _object(environ, body, "lease", "delay", "counted", "dead", "reason")
    if "dead" in change:
        return LeaseChange(dead=True, reason=_reason(change))
    _one_of(change, "lease", "dead")
    if "reason" in change:
        raise InvalidInput("'reason' requires 'dead'", field="reason")
    lease = milliseconds(change["lease"], "lease", most=MAX_LEASE) / 1000
    if lease:
        for name in change:
            if name != "lease":
                raise InvalidInput(f"'{name}' requires a 'lease' of 0", field=name)
        milliseconds(change["lease"], "lease", least=1, most=MAX_LEASE)
    counted = change.get("counted", True)
    if not isinstance(counted, bool):
        raise InvalidInput("'counted' must be true or false", field="counted")
    return LeaseChange(lease, milliseconds(change.get("delay", 0), "delay") / 1000, counted)


def message_change(environ: Environ, body: bytes) -> MessageChange:
    change = _object(environ, body, "delay", "dead", "reason")
    if "dead" in change:
        return MessageChange(None, _reason(change))
    _one_of(change, "delay", "dead")
    only(change, "delay")
    return MessageChange(milliseconds(change["delay"], "delay") / 1000)


def transaction(environ: Environ, body: bytes) -> Transaction:
    document = _object(environ, body, "ack", "send", "receive")
    if not document:
        raise InvalidInput("a transaction must have at least one of 'ack', 'send' and 'receive'")
    sends = document.get("send", [])
    if not isinstance(sends, list) or len(sends) > MAX_BATCH:
        raise InvalidInput(f"'send' must be an array of at most {MAX_BATCH} messages", field="send")
    return Transaction(
        _receipts(document, "ack", least=0),
        [_addressed(item, index) for index, item in enumerate(sends)],
        _receive(document["receive"], holder(environ)) if "receive" in document else None,
    )


def settings(environ: Environ, body: bytes) -> dict[str, Any]:
    """Return the changes; QueueSettings.changed checks them."""
    return _object(environ, body)


def purge(environ: Environ, body: bytes) -> Purge:
    return _purge(_object(environ, body, "ids", "reason") if body else {})


def redrive(environ: Environ, body: bytes) -> Redrive:
    given = _object(environ, body, "limit", "ids", "reason") if body else {}
    limit = given.get("limit")
    return Redrive(None if limit is None else _whole(limit, "limit", 2**53), *_purge(given))


def if_match(environ: Environ) -> int | None:
    """Return the version in If-Match; None without one, -1 (which no queue has) if it is not one of our ETags."""
    tag = environ.get("HTTP_IF_MATCH", "*").strip()
    if tag == "*":
        return None
    number = tag.removeprefix('"').removesuffix('"')
    return (int(number) if number.isascii() and number.isdigit() and len(number) < 19 else 0) or -1


def _object(environ: Environ, body: bytes, *names: str) -> dict[str, Any]:
    """Return a JSON object, with no other members than `names` if there are any."""
    if media_type(environ) != JSON:
        raise UnsupportedMediaType(f"the Content-Type must be {JSON}")
    document = parse_json(body)
    if not isinstance(document, dict):
        raise InvalidInput("the body must be a JSON object")
    if names:
        only(document, *names)
    return document


def only(document: Mapping[str, Any], *names: str) -> None:
    """Raise InvalidInput for a member of another name."""
    for name in document:
        if name not in names:
            raise InvalidInput(f"unknown field '{name[:128]}': use {', '.join(names)}", field=name[:128])


def _one_of(change: Mapping[str, Any], *names: str) -> None:
    """Raise InvalidInput unless the change has one of these members."""
    if change.keys().isdisjoint(names):
        raise InvalidInput(f"a change must have one of {', '.join(map(repr, names))}", field=names[0])


def _reason(change: Mapping[str, Any]) -> str:
    """Return the reason in {"dead": true, "reason": …}, or the default."""
    only(change, "dead", "reason")
    if change["dead"] is not True:
        raise InvalidInput("'dead' must be true", field="dead")
    return check_name("reason", change.get("reason", "rejected"), MAX_REASON)


def _recipient(recipient: Any, recipients: Any) -> str | None:
    """Return the recipient for Receive: "" for unaddressed messages, None for any."""
    if recipients is None:
        return "" if recipient is None else check_name("recipient", recipient)
    if recipients != ANY or recipient is not None:
        raise InvalidInput(f"'recipients' must be '{ANY}', without 'recipient'", field="recipients")
    return None


def _purge(given: Mapping[str, Any]) -> Purge:
    ids, reason = given.get("ids"), given.get("reason")
    return Purge(
        None if ids is None else _ids(ids), None if reason is None else check_name("reason", reason, MAX_REASON)
    )


def _ids(given: object) -> list[int]:
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_BATCH:
        raise InvalidInput(f"'ids' must be an array of 1 to {MAX_BATCH} ids", field="ids")
    for index, one in enumerate(given):
        if not isinstance(one, str) or not ID.fullmatch(one):
            raise InvalidInput("an id must be a string of digits", field="ids", index=index)
    return [number for one in given if (number := int(one)) <= MAX_ID]  # no message has a larger one


def _receipts(document: Mapping[str, Any], field: str, least: int) -> list[str]:
    given = document.get(field, [])
    if not isinstance(given, list) or not least <= len(given) <= MAX_BATCH:
        raise InvalidInput(f"'{field}' must be an array of {least} to {MAX_BATCH} receipts", field=field)
    if not all(isinstance(receipt, str) for receipt in given):
        raise InvalidInput("a receipt must be a string", field=field)
    return given


def _addressed(item: object, index: int) -> tuple[str, NewMessage]:
    """Return a message and its queue."""
    if not isinstance(item, dict):
        raise InvalidInput("a message must be a JSON object with a 'text'", field="send", index=index)
    document = dict(item)
    queue = document.pop("queue", "default")
    try:
        return check_queue_name(queue if isinstance(queue, str) else ""), NewMessage.from_document(document, index)
    except InvalidInput as fault:
        fault.index = index
        raise


def _receive(document: object, holder: str) -> Receive:
    if not isinstance(document, dict):
        raise InvalidInput("'receive' must be an object", field="receive")
    only(document, "queue", "limit", "lease", "wait", "recipient", "recipients")
    for name in ("recipient", "recipients"):
        if name in document and not isinstance(document[name], str):
            raise InvalidInput(f"'{name}' must be a string", field=name)
    queue, lease = document.get("queue", "default"), document.get("lease", "default")
    return Receive(
        queues=(check_queue_name(queue if isinstance(queue, str) else ""),),
        limit=_whole(document.get("limit", 1), "limit", MAX_LIMIT),
        lease=lease if lease == "default" else milliseconds(lease, "lease", least=1, most=MAX_LEASE) / 1000,
        recipient=_recipient(document.get("recipient"), document.get("recipients")),
        wait=milliseconds(document.get("wait", 0), "wait", most=MAX_WAIT) / 1000,
        holder=holder,
    )


def _whole(given: object, field: str, most: int) -> int:
    if type(given) is not int or not 1 <= given <= most:
        raise InvalidInput(f"'{field}' must be a whole number from 1 to {most}", field=field)
    return given
