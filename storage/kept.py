"""The JSON that every engine keeps: a queue's settings, and the story of a dead letter beside its own fields."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import lru_cache

from storage.model import QueueSettings


@lru_cache(maxsize=1024)
def read_settings(text: str) -> QueueSettings:
    """The settings kept as JSON."""
    return QueueSettings(**json.loads(text))


def write_settings(settings: QueueSettings) -> str:
    """As JSON, the defaults left out."""
    default = asdict(QueueSettings())
    return json.dumps({name: value for name, value in asdict(settings).items() if value != default[name]})


def told(fields: str | None, death: str | None) -> str | None:
    """The optional fields as a reader gets them: a dead letter's story is told among its attributes."""
    if death is None:
        return fields
    told = json.loads(fields or "{}")
    told["attributes"] = {**told.get("attributes", {}), **json.loads(death)}
    return json.dumps(told, ensure_ascii=False)
