"""HTTP responses: messages, queues and problems as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bottle import HTTPResponse

from doors.wire import JSON, NDJSON, RUNS
from storage import runs
from storage.model import ExtendResult, Message, NewMessage, Queue, Receive, Sent, Transacted, rfc3339

_quoted = json.JSONEncoder(ensure_ascii=False).encode  # a string as JSON
RETRY_AFTER = 1  # seconds, on 429, 503 and a 204 because too many readers are waiting


def nothing(**headers: str) -> HTTPResponse:
    return HTTPResponse(status=204, headers={"Cache-Control": "no-store"}, **headers)


def value(content: object, headers: dict[str, str] | None = None) -> HTTPResponse:
    return _text(json.dumps(content, ensure_ascii=False), headers=headers)


def document(content: str) -> HTTPResponse:
    """Return a response with content that is JSON already."""
    return _text(content)


def text(content: str, kind: str) -> HTTPResponse:
    return _text(content, kind=kind)


def see_other(location: str) -> HTTPResponse:
    return _text(json.dumps({"page": location}), 303, headers={"Location": location})


def stored(sent: Sent, message: NewMessage) -> HTTPResponse:
    duplicate = '"duplicate": true, ' if sent.duplicates else ""
    return _text(f'{{"id": "{sent.ids[0]}", {duplicate}{_as_written(message.text, message.fields)[1:]}')


def ids(sent: Sent) -> HTTPResponse:
    return _text(f"{{{_ids(sent.ids, sent.duplicates)}}}")


def delivery(messages: Sequence[Message], ask: Receive, many: bool, kind: str) -> HTTPResponse:
    """Return the messages of a read: leased ones in their envelope, others as they were written."""
    if not messages:
        return nothing()
    if ask.lease is not None:
        documents = _leased(messages, packed=many and kind == RUNS)
    else:
        kind = JSON if kind == RUNS else kind
        documents = [_as_written(message.text, message.fields) for message in messages]
        if many and len(ask.queues) > 1:
            named = zip(messages, documents, strict=True)
            documents = [f'{{"queue": "{message.queue}", {one[1:]}' for message, one in named]
    return batch(documents, kind) if many else _text(documents[0], headers=_delivery_headers(messages[0]))


def batch(documents: list[str], kind: str) -> HTTPResponse:
    return _text("\n".join(documents) if kind == NDJSON else f"[{','.join(documents)}]", kind=kind)


def extended(until: int) -> HTTPResponse:
    return value({"leased_until": rfc3339(until)})


def extended_many(result: ExtendResult) -> HTTPResponse:
    return value(result._asdict() | {"leased_until": rfc3339(result.leased_until)})


def transacted(done: Transacted, asked: Receive | None, kind: str) -> HTTPResponse:
    numbers = _ids(done.ids, done.duplicates)
    if asked is None:
        return _text(f"{{{numbers}}}")
    headers = {"Retry-After": str(RETRY_AFTER)} if done.crowded else {}
    messages = ",".join(_leased(done.messages, packed=kind == RUNS))
    return _text(f'{{{numbers}, "messages": [{messages}]}}', kind=kind, headers=headers)


def listing(queues: Sequence[Queue], limit: int) -> HTTPResponse:
    """Return a page of queues. `next` is its last name, if another page may follow."""
    document: dict[str, Any] = {"queues": [stats(queue) for queue in queues]}
    return value(document | ({"next": queues[-1].name} if len(queues) == limit else {}))


def stats(queue: Queue) -> dict[str, Any]:
    return {"queue": queue.name, "stats": queue.stats._asdict()}


def description(queue: Queue) -> HTTPResponse:
    return value(stats(queue) | {"settings": asdict(queue.settings)}, {"ETag": f'"{queue.version}"'})


def envelope(message: Message, state: str | None = None) -> str:
    """Return a message in its envelope, as JSON. Unescaped parts are the service's own ASCII."""
    members = f'{{"id": "{message.id}", "queue": "{message.queue}"'
    if state is not None:
        members += f', "state": "{state}"'
    members += f', "sent_at": "{rfc3339(message.sent_at)}", "receive_count": {message.receive_count}'
    if message.receipt is not None:
        members += f', "receipt": "{message.receipt}"'
    if message.leased_until is not None:
        members += f', "leased_until": "{rfc3339(message.leased_until)}"'
    return f"{members}, {_as_written(message.text, message.fields)[1:]}"


def _ids(numbers: Sequence[int], duplicates: Sequence[int]) -> str:
    """Return members of a JSON object: ids, and duplicates if there are any."""
    members = f'"ids": {json.dumps(list(map(str, numbers)))}'
    return f'{members}, "duplicates": {json.dumps(list(duplicates))}' if duplicates else members


def _leased(messages: Sequence[Message], *, packed: bool) -> list[str]:
    """Return each message in its envelope. `packed`: return consecutive ones as one run."""
    parts = runs.packed(messages) if packed else messages
    return [_run(part) if isinstance(part, runs.Run) else envelope(part) for part in parts]


def _run(run: runs.Run) -> str:
    """Return the envelope of a run. Its texts and attributes are JSON already."""
    members = f'{{"id": "{run.id}", "count": {run.length}, "queue": "{run.queue}", "sent_at": "{rfc3339(run.sent_at)}"'
    members += f', "receive_count": {run.receive_count}, "receipt": "{run.receipt}"'
    members += f', "leased_until": "{rfc3339(run.leased_until or 0)}", "texts": {run.texts}'
    return f"{members}}}" if run.attributes is None else f'{members}, "attributes": {run.attributes}}}'


def problem(
    status: int, code: str, title: str, detail: str, headers: dict[str, str] | None = None, **more: object
) -> HTTPResponse:
    """Return a problem document (RFC 9457). `more`: its further members; None leaves one out."""
    members = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    members |= {name: value for name, value in more.items() if value is not None}
    headers = headers or ({"Retry-After": str(RETRY_AFTER)} if status in (429, 503) else {})
    return _text(json.dumps(members, ensure_ascii=False), status, "application/problem+json", headers)


def _as_written(text: str, fields: str | None) -> str:
    """Return a message as it was written, as JSON. `fields` is JSON already."""
    members = f'{{"text": {_quoted(text)}'
    return f"{members}}}" if fields is None or fields == "{}" else f"{members}, {fields[1:]}"


def _delivery_headers(message: Message) -> dict[str, str]:
    return {
        "Message-Id": str(message.id),
        "Message-Queue": message.queue,
        "Message-Sent-At": rfc3339(message.sent_at),
    }


def _text(text: str, status: int = 200, kind: str = JSON, headers: dict[str, str] | None = None) -> HTTPResponse:
    headers = {"Content-Type": kind, "Cache-Control": "no-store"} | (headers or {})
    # A lone surrogate quoted from a request becomes its JSON escape.
    body = f"{text}\n".encode("utf-8", "backslashreplace") if text else b""
    return HTTPResponse(body, status, headers)
