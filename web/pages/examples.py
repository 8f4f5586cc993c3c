"""Examples of requests, as curl lines, with the service's replies, which `python -m tests.pages.examples` records."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from web.native.request import JSON

FILE = Path(__file__).with_name("examples.json")


class Example(NamedTuple):
    about: str  # the id of an operation, or a section of the page
    curl: str
    status: int = 0
    reply: str = ""


@lru_cache(maxsize=1)
def recorded() -> list[Example]:
    """Return all examples, in the order in which they ran."""
    return [Example(**one) for one in json.loads(FILE.read_text("utf-8"))]


def add_to(paths: dict[str, Any]) -> None:
    """Add to each operation its curl line and the reply."""
    examples = {example.about: example for example in recorded()}
    for operation in [operation for item in paths.values() for operation in item.values()]:
        if isinstance(operation, dict) and (example := examples.get(operation["operationId"])):
            operation["x-codeSamples"] = [{"lang": "Shell", "label": "curl", "source": example.curl}]
            responses, status = operation["responses"], str(example.status)
            content = responses.get(status, {}).get("content", {})
            if JSON in content and example.reply.startswith(("{", "[")):
                reply = content[JSON] | {"examples": {"curl": {"value": json.loads(example.reply)}}}
                responses[status] = responses[status] | {"content": content | {JSON: reply}}
