"""Test the examples of the OpenAPI document and of its page."""

from __future__ import annotations

import jsonschema_rs

from tests.pages.examples import run_all
from tests.support.contract import DOCUMENT
from web.pages.examples import recorded


def test_the_service_replies_to_each_curl_line_as_recorded() -> None:
    assert run_all() == recorded(), "record the replies anew: python -m tests.pages.examples"


def test_every_operation_has_a_curl_line() -> None:
    named = {
        operation["operationId"]
        for item in DOCUMENT["paths"].values()
        for method, operation in item.items()
        if method not in ("parameters", "head")
    }
    assert {example.about for example in recorded()} == named | {"authentication", "errors"}


def test_every_example_is_valid_by_its_schema() -> None:
    operations = [item for path in DOCUMENT["paths"].values() for item in path.values() if isinstance(item, dict)]
    answers = [answer for operation in operations for answer in operation["responses"].values()]
    answers += DOCUMENT["components"]["responses"].values()
    media_types = [media_type for answer in answers for media_type in answer.get("content", {}).values()]
    shown = [media_type for media_type in media_types if "examples" in media_type]
    assert len(shown) > 40
    for media_type in shown:
        validator = jsonschema_rs.Draft202012Validator(
            media_type["schema"] | {"components": DOCUMENT["components"]}, validate_formats=True
        )
        assert [value for value in media_type["examples"].values() if not validator.is_valid(value["value"])] == []
