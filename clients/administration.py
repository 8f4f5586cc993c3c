"""Steps of calls that show and change whole queues."""

from __future__ import annotations

import json
import re
from typing import Any, Literal, Unpack
from urllib.parse import parse_qsl, urlencode

from .http.calls import Call, Steps
from .http.paths import queue_path
from .messages import Message, drop_none, encode, parse_message, require_list
from .queues import Chosen, QueueState, QueueStats, Selection

_NEXT = re.compile(r'<\?([^>]*)>; rel="next"')


def read(path: str) -> Steps[Any]:
    """Return the JSON at a path."""
    reply = yield Call("GET", path, idempotent=True)
    return json.loads(reply.body)


def describe(queue: str) -> Steps[tuple[QueueState, str | None]]:
    """Return a queue and the ETag of its settings."""
    reply = yield Call("GET", queue_path(queue), idempotent=True)
    return json.loads(reply.body), reply.headers.get("etag")


def peek(queue: str, limit: int, selection: Selection) -> Steps[list[Message]]:
    """Return up to `limit` messages, with as many requests as it takes."""
    found: list[Message] = []
    query = drop_none(limit=limit, **selection)
    while True:
        reply = yield Call("GET", f"{queue_path(queue)}/peek?{urlencode(query)}", idempotent=True)
        found += (parse_message(document, queue) for document in json.loads(reply.body or b"[]"))
        following = _NEXT.fullmatch(reply.headers.get("link", ""))
        if len(found) >= limit or following is None:
            return found
        query = dict(parse_qsl(following[1])) | {"limit": limit - len(found)}


def change(
    queue: str, verb: Literal["purge", "redrive"], limit: int | None = None, **chosen: Unpack[Chosen]
) -> Steps[int]:
    """Purge or redrive the chosen messages of a queue; return their number."""
    ids = chosen.get("ids")
    listed = None if ids is None else list(require_list(ids))
    body = encode(drop_none(limit=limit, ids=listed, reason=chosen.get("reason")))
    reply = yield Call("POST", f"{queue_path(queue)}/{verb}", body)
    return int(json.loads(reply.body)["purged" if verb == "purge" else "redriven"])


def list_queues(prefix: str) -> Steps[dict[str, QueueStats]]:
    """Return the stats of each queue whose name begins with `prefix`, by name."""
    found: dict[str, QueueStats] = {}
    after: str | None = ""
    while after is not None:
        query = urlencode(drop_none(prefix=prefix or None, after=after or None))
        page = yield from read(f"/queues?{query}".rstrip("?"))
        found |= {queue["queue"]: queue["stats"] for queue in page["queues"]}
        after = page.get("next")
    return found
