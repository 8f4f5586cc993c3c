"""HTTP responses: messages, queues and problems as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from http import HTTPStatus
from itertools import chain
from typing import Any
from urllib.parse import urlencode

from bottle import HTTPResponse

from storage import column_batches
from storage.column_batches import ColumnBatch, Messages, unpack_columns
from storage.model import ExtendResult, Message, NewMessage, Queue, Receive, Sent, Transacted, rfc3339
from storage.store import Peek, Peeked, Reasons
from web.native.request import JSON, NDJSON, RUNS

_quoted = json.JSONEncoder(ensure_ascii=False).encode  # a value as JSON
PIECE = 65_536  # characters encoded as JSON at once
WHOLE = 1_048_576  # characters of a reply that is made before it is sent
RETRY_AFTER = 1  # seconds, on 429, 503 and a 204 because too many readers are waiting
_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


class Response(HTTPResponse):
    """A route's response. Bottle's constructor would check each header for longer than most routes run."""

    def __init__(self, body: bytes | Iterable[bytes], status: int, headers: dict[str, str]) -> None:
        self.body = body
        self.line = _LINES[status]
        self.fields = list(headers.items())
        if isinstance(body, bytes) and status != 204:
            self.fields.append(("Content-Length", str(len(body))))


def nothing(headers: dict[str, str] | None = None) -> Response:
    return Response(b"", 204, {"Cache-Control": "no-store"} | (headers or {}))


def value(content: object, headers: dict[str, str] | None = None) -> Response:
    return _text(_quoted(content), headers=headers)


def text(content: str, kind: str) -> Response:
    return _text(content, kind=kind)


def see_other(location: str) -> Response:
    return _text(json.dumps({"page": location}), 303, headers={"Location": location})


def stored(sent: Sent, message: NewMessage) -> Response:
    start = f'{{"id": "{sent.ids[0]}", ' + ('"duplicate": true, ' if sent.duplicates else "")
    return _in_pieces(lambda: _as_written(message, start))


def ids(sent: Sent) -> Response:
    return _text(f"{{{_ids(sent.ids, sent.duplicates)}}}")


def delivery(messages: Sequence[Message], ask: Receive, many: bool, kind: str) -> Response:
    """Return the messages of a read: leased ones in their envelope, others as they were written."""
    if not messages:
        return nothing()
    if kind == RUNS and (ask.lease is None or not many):
        kind = JSON

    if not many:
        message = messages[0]
        pieces = _as_written if ask.lease is None else _envelope
        return _in_pieces(lambda: pieces(message), headers=_delivery_headers(message))

    def each() -> Iterator[Iterable[str]]:
        if ask.lease is not None:
            return _leased(messages, kind)
        if len(ask.queues) > 1:
            return (_as_written(message, f'{{"queue": "{message.queue}", ') for message in messages)
        return (_as_written(message) for message in messages)

    return _in_pieces(lambda: _batch(each(), kind), kind)


def looked(message: Message) -> Response:
    return _in_pieces(lambda: _envelope(message, message.state))


def peeked(messages: Peeked, ask: Peek, kind: str) -> Response:
    """Return the messages, and a Link to the next ones unless that was all."""
    headers = {}
    if messages.next is not None:
        query = ask._asdict() | {"after" if ask.before is None else "before": messages.next}
        next = urlencode({name: value for name, value in query.items() if value}, safe="!$'()*,/:;?@")
        headers = {"Link": f'<?{next}>; rel="next"'}
    return _in_pieces(lambda: _batch((_envelope(message, message.state) for message in messages), kind), kind, headers)


def reasons(found: Reasons) -> Response:
    return value({"reasons": [one._asdict() for one in found.reasons], "complete": found.complete})


def extended(until: int) -> Response:
    return value({"leased_until": rfc3339(until)})


def extended_many(result: ExtendResult) -> Response:
    return value(result._asdict() | {"leased_until": rfc3339(result.leased_until)})


def transacted(done: Transacted, asked: Receive | None, kind: str) -> Response:
    numbers = _ids(done.ids, done.duplicates)
    if asked is None:
        return _text(f"{{{numbers}}}")
    headers = {"Retry-After": str(RETRY_AFTER)} if done.crowded else {}
    start, end = f'{{{numbers}, "messages": ', "}"
    return _in_pieces(lambda: chain([start], _batch(_leased(done.messages, kind), JSON), [end]), kind, headers)


def listing(queues: Sequence[Queue], limit: int) -> Response:
    """Return a page of queues. `next` is its last name, if another page may follow."""
    document: dict[str, Any] = {"queues": [stats(queue) | {"paused": queue.settings.paused} for queue in queues]}
    return value(document | ({"next": queues[-1].name} if len(queues) == limit else {}))


def stats(queue: Queue) -> dict[str, Any]:
    return {"queue": queue.name, "stats": queue.stats._asdict()}


def description(queue: Queue) -> Response:
    return value(stats(queue) | {"settings": asdict(queue.settings)}, {"ETag": f'"{queue.version}"'})


def _envelope(message: Message, state: str | None = None) -> Iterable[str]:
    """Return a message in its envelope, as JSON. Unescaped parts are the service's own ASCII."""
    members = f'{{"id": "{message.id}", "queue": "{message.queue}", '
    if state is not None:
        members += f'"state": "{state}", '
    members += f'"sent_at": "{rfc3339(message.sent_at)}", "receive_count": {message.receive_count}, '
    if message.receipt is not None:
        members += f'"receipt": "{message.receipt}", '
    if message.leased_until is not None:
        members += f'"leased_until": "{rfc3339(message.leased_until)}", '
    if message.leased_by is not None:
        members += f'"leased_by": {_quoted(message.leased_by)}, '
    return _as_written(message, members)


def _ids(numbers: Sequence[int], duplicates: Sequence[int]) -> str:
    """Return members of a JSON object: ids, and duplicates if there are any."""
    ids = ", ".join([f'"{number}"' for number in numbers])
    members = f'"ids": [{ids}]'
    return f'{members}, "duplicates": {json.dumps(list(duplicates))}' if duplicates else members


def _leased(messages: Sequence[Message], kind: str) -> Iterator[Iterable[str]]:
    """Return the messages in their envelopes: with RUNS consecutive ones as one run."""
    if kind == RUNS:
        parts = column_batches.packed(messages)
        return (_run(part) if isinstance(part, ColumnBatch) else _envelope(part) for part in parts)
    known = messages.parts if isinstance(messages, Messages) else messages
    between = _separators(kind)[1]
    return ([between.join(_envelopes(part))] if isinstance(part, ColumnBatch) else _envelope(part) for part in known)


def _envelopes(batch: ColumnBatch) -> list[str]:
    """Return a batch's messages in their envelopes, which differ only in the id, the text and the fields."""
    before, after = batch.receipt_parts
    middle = f'", "queue": "{batch.queue}", "sent_at": "{rfc3339(batch.sent_at)}", "receive_count": '
    middle += f'{batch.receive_count}, "receipt": "{before}'
    after += f'", "leased_until": "{rfc3339(batch.leased_until or 0)}", "text": '
    return [
        f'{{"id": "{number}{middle}{number}{after}{_quoted(text)}{_end(fields)}'
        for number, text, fields in unpack_columns(batch.id, batch.texts, batch.attributes)
    ]


def _run(run: ColumnBatch) -> Iterable[str]:
    """Return the envelope of a run. Its texts and attributes are JSON already."""
    members = f'{{"id": "{run.id}", "count": {run.length}, "queue": "{run.queue}", "sent_at": "{rfc3339(run.sent_at)}"'
    members += f', "receive_count": {run.receive_count}, "receipt": "{run.receipt}"'
    members += f', "leased_until": "{rfc3339(run.leased_until or 0)}", "texts": {run.texts}'
    return [f"{members}}}" if run.attributes is None else f'{members}, "attributes": {run.attributes}}}']


def problem(
    status: int, code: str, title: str, detail: str, headers: dict[str, str] | None = None, **more: object
) -> Response:
    """Return a problem document (RFC 9457). `more`: its further members; None leaves one out."""
    members = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    members |= {name: value for name, value in more.items() if value is not None}
    headers = headers or ({"Retry-After": str(RETRY_AFTER)} if status in (429, 503) else {})
    return _text(json.dumps(members, ensure_ascii=False), status, "application/problem+json", headers)


def _as_written(message: Message | NewMessage, start: str = "{") -> Iterable[str]:
    """Return a message as it was written, as JSON that begins with `start`. Its fields are JSON already."""
    text, end = message.text, _end(message.fields)
    if len(text) <= PIECE:
        return [f'{start}"text": {_quoted(text)}{end}']
    pieces = (_quoted(text[at : at + PIECE])[1:-1] for at in range(0, len(text), PIECE))
    return chain([f'{start}"text": "'], pieces, [f'"{end}'])


def _end(fields: str | None) -> str:
    """Return the end of a message's JSON, after its text."""
    return "}" if fields is None or fields == "{}" else f", {fields[1:]}"


def _separators(kind: str) -> tuple[str, str, str]:
    """Return what stands before, between and after the messages of a batch."""
    return ("", "\n", "") if kind == NDJSON else ("[", ",", "]")


def _batch(messages: Iterable[Iterable[str]], kind: str) -> Iterator[str]:
    start, between, end = _separators(kind)
    yield start
    for number, pieces in enumerate(messages):
        if number:
            yield between
        yield from pieces
    yield end


def _delivery_headers(message: Message) -> dict[str, str]:
    return {
        "Message-Id": str(message.id),
        "Message-Queue": message.queue,
        "Message-Sent-At": rfc3339(message.sent_at),
    }


def _in_pieces(
    pieces: Callable[[], Iterable[str]], kind: str = JSON, headers: dict[str, str] | None = None
) -> Response:
    """Return a reply of these pieces. Encode a large one while it is sent: it may be six times its messages' size."""
    some, size = [], 0
    for piece in pieces():
        some.append(piece)
        size += len(piece)
        if size > WHOLE:
            body = _Body(pieces)
            return Response(body, 200, _headers(kind, headers) | {"Content-Length": str(sum(map(len, body)))})
    return _text("".join(some), kind=kind, headers=headers)


class _Body:
    def __init__(self, pieces: Callable[[], Iterable[str]]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        some, size = [], 0
        for piece in self._pieces():
            some.append(piece.encode())
            size += len(piece)
            if size >= PIECE:
                yield b"".join(some)
                some, size = [], 0
        yield b"".join([*some, b"\n"])

    def close(self) -> None:
        """Free the messages: Bottle keeps the body until the thread's next request."""
        self._pieces = tuple


def _text(text: str, status: int = 200, kind: str = JSON, headers: dict[str, str] | None = None) -> Response:
    # A lone surrogate quoted from a request becomes its JSON escape.
    body = f"{text}\n".encode("utf-8", "backslashreplace") if text else b""
    return Response(body, status, _headers(kind, headers))


def _headers(kind: str, more: dict[str, str] | None) -> dict[str, str]:
    return {"Content-Type": kind, "Cache-Control": "no-store"} | (more or {})
