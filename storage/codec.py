"""The JSON that every engine keeps: a queue's settings, and the deaths of a dead letter beside its own fields."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import lru_cache

from storage.literals import decode, encode
from storage.model import QueueSettings


@lru_cache(maxsize=1024)
def read_settings(text: str) -> QueueSettings:
    """The settings kept as JSON."""
    return QueueSettings(**json.loads(text))


def write_settings(settings: QueueSettings) -> str:
    """As JSON, the defaults left out."""
    default = asdict(QueueSettings())
    return json.dumps({name: value for name, value in asdict(settings).items() if value != default[name]})


def with_dead_letter_history(fields: str | None, deaths: str | None) -> str | None:
    """Return the optional fields as a reader gets them: those of a dead letter have its deaths among the attributes.

    `deaths` is a JSON array of objects, the last death at its end, each with dead_letter_from, dead_letter_reason,
    dead_letter_at, dead_letter_id and dead_letter_receive_count. Those of the last one become attributes, and the
    earlier ones, if any, dead_letter_history: a string that holds their JSON array.
    """
    if deaths is None:
        return fields
    *earlier, last = json.loads(deaths)
    document = decode(fields or "{}")
    document["attributes"] = {**document.get("attributes", {}), **last}
    if earlier:
        document["attributes"]["dead_letter_history"] = json.dumps(earlier, ensure_ascii=False)
    return encode(document)
