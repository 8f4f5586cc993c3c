"""The JSON protocol of SQS: AWS JSON 1.0."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from storage.errors import InvalidInput
from web.native.decoding import parse_json
from web.native.request import BadRequest, Environ
from web.sqs.errors import SqsError
from web.sqs.protocols.reply import Reply

CONTENT_TYPE = "application/x-amz-json-1.0"
TARGET = "AmazonSQS."  # before the action, in the header X-Amz-Target

_SMALL = 65_536  # characters of messages that are encoded together
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


class JsonProtocol:
    is_form = False

    def request(self, environ: Environ, body: bytes) -> tuple[str, Mapping[str, Any]]:
        try:
            document = parse_json(body) if body.strip() else {}
        except (BadRequest, InvalidInput) as fault:
            raise SqsError("SerializationException", str(fault)) from None
        if not isinstance(document, dict):
            raise SqsError("SerializationException", "the body must be a JSON object")
        if not (action := environ["HTTP_X_AMZ_TARGET"].removeprefix(TARGET)):
            raise self.unknown_action(action)
        return action, document

    def without_action(self) -> Reply | None:
        return None  # request() has raised

    def clean(self, text: str) -> str:
        return text  # JSON holds any

    def unknown_action(self, action: str) -> SqsError:
        return SqsError("UnknownOperationException", f"The action {action} is not valid for this endpoint.")

    def reply(self, action: str, result: Mapping[str, Any], request_id: str) -> Reply:
        messages = result.get("Messages")
        if messages is None or _are_small(messages):
            return Reply.of(200, CONTENT_TYPE, _encode(result))
        return Reply.of_pieces(200, CONTENT_TYPE, lambda: _pieces(messages))

    def error(self, fault: SqsError, request_id: str) -> Reply:
        headers = {"x-amzn-query-error": f"{fault.code};{fault.fault}"}
        written = _encode({"__type": fault.type, "message": str(fault)})
        return Reply.of(fault.status, CONTENT_TYPE, written, headers)


def _are_small(messages: Sequence[Mapping[str, Any]]) -> bool:
    return sum([len(message["Body"]) for message in messages]) <= _SMALL and not any(
        "MessageAttributes" in message for message in messages
    )


def _pieces(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield large messages as JSON, one by one."""
    for number, message in enumerate(messages):
        yield ("," if number else '{"Messages":[') + _encode(message)
    yield "]}"
