"""The JSON that every engine stores: a queue's settings, and a dead letter's history beside its fields."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import lru_cache

from storage.literals import decode, encode
from storage.model import QueueSettings


@lru_cache(maxsize=1024)
def read_settings(text: str) -> QueueSettings:
    """Parse stored settings."""
    return QueueSettings(**json.loads(text))


def write_settings(settings: QueueSettings) -> str:
    """Serialize settings as JSON, without those that have their default values."""
    default = asdict(QueueSettings())
    return json.dumps({name: value for name, value in asdict(settings).items() if value != default[name]})


def with_dead_letter_history(fields: str | None, deaths: str | None) -> str | None:
    """Return a message's optional fields as a reader receives them: a dead letter's attributes include its history.

    `deaths` is a JSON array of objects in order of time. Each has dead_letter_from, dead_letter_reason, dead_letter_at,
    dead_letter_id and dead_letter_receive_count. The last object's values become attributes. Earlier objects become
    dead_letter_history: a string that holds their JSON array.
    """
    if deaths is None:
        return fields
    *earlier, last = json.loads(deaths)
    document = decode(fields or "{}")
    document["attributes"] = {**document.get("attributes", {}), **last}
    if earlier:
        document["attributes"]["dead_letter_history"] = json.dumps(earlier, ensure_ascii=False)
    return encode(document)
