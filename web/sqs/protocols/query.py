"""The query protocol of SQS: form fields in the request, XML in the reply. Older SDKs use it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from web.native.request import Environ
from web.sqs.errors import NO_QUEUE, SqsError
from web.sqs.parameters import NOT_IN_XML
from web.sqs.protocols.reply import Reply

CONTENT_TYPE = "text/xml"

MOST_FIELDS = 2_000  # ten entries of ten attributes have fewer than half of that
_MOST_PARTS = 6  # of a name: SendMessageBatchRequestEntry.1.MessageAttribute.1.Value.StringValue

_DECLARATION = '<?xml version="1.0"?>'
_NAMESPACE = "http://queue.amazonaws.com/doc/2012-11-05/"
# Fields that are numbered from 1, and the member of the request's document that each becomes.
_LISTS = {
    "AttributeName": "AttributeNames",
    "MessageSystemAttributeName": "MessageSystemAttributeNames",
    "MessageAttributeName": "MessageAttributeNames",
    "ActionName": "Actions",
    "AWSAccountId": "AWSAccountIds",
    "TagKey": "TagKeys",
    "SendMessageBatchRequestEntry": "Entries",
    "DeleteMessageBatchRequestEntry": "Entries",
    "ChangeMessageVisibilityBatchRequestEntry": "Entries",
}
_MAPS = {
    "Attribute": ("Attributes", "Name"),
    "MessageAttribute": ("MessageAttributes", "Name"),
    "MessageSystemAttribute": ("MessageSystemAttributes", "Name"),
    "Tag": ("Tags", "Key"),
}
_MEMBERS = {*_LISTS.values(), *(member for member, _ in _MAPS.values())}  # SDKs write an empty list as one field
_WRITTEN_MAPS = {member: (field, key) for field, (member, key) in _MAPS.items()}
_WRITTEN_LISTS = {
    "Messages": "Message",
    "QueueUrls": "QueueUrl",
    "queueUrls": "QueueUrl",
    "Failed": "BatchResultErrorEntry",
    "Results": "ListMessageMoveTasksResultEntry",
}
_ESCAPED = re.compile(rb"(?:%[0-9A-Fa-f]{2}){1,4096}")  # not more, because it remembers where each byte began
_ESCAPES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("\r", "&#13;"))  # in this order

_NOT_AT_A_QUEUE = frozenset({"CreateQueue", "ListQueues"})
# Actions whose replies have a result, even if it has no members.
_WITH_RESULT = frozenset(
    {
        *("CreateQueue", "GetQueueUrl", "ListQueues", "GetQueueAttributes", "ListDeadLetterSourceQueues"),
        *("SendMessage", "SendMessageBatch", "ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"),
        *("ListQueueTags", "StartMessageMoveTask", "CancelMessageMoveTask", "ListMessageMoveTasks"),
    }
)

_Tree = dict[str, Any]


class QueryProtocol:
    is_form = True

    def __init__(self, queue_path: str | None = None) -> None:
        """Take the path of a request at a queue's URL; None at the endpoint itself."""
        self._queue_path = queue_path

    def request(self, environ: Environ, body: bytes) -> tuple[str, Mapping[str, Any]]:
        fields = fields_of(environ.get("QUERY_STRING", ""), body)
        action, document = fields.get("Action", ""), _document(_tree(fields))
        if action.endswith("Batch"):
            document.setdefault("Entries", [])
        if self._queue_path is not None:
            if action in _NOT_AT_A_QUEUE:
                raise self.unknown_action(action)
            document.setdefault("QueueUrl", self._queue_path)
        return action, document

    def without_action(self) -> Reply | None:
        return None if self._queue_path is None else Reply.of(404, CONTENT_TYPE, "<UnknownOperationException/>")

    def unknown_action(self, action: str) -> SqsError:
        return SqsError("InvalidAction", f"The action {action} is not valid for this endpoint.")

    def clean(self, text: str) -> str:
        """Return the text with U+FFFD in place of each character that XML does not have."""
        return NOT_IN_XML.sub("\ufffd", text)

    def reply(self, action: str, result: Mapping[str, Any], request_id: str) -> Reply:
        start, end = f'{_DECLARATION}<{action}Response xmlns="{_NAMESPACE}">', f"</{action}Response>"
        if any(value != [] for value in result.values()):
            start, end = f"{start}<{action}Result>", f"</{action}Result>{_metadata(request_id)}{end}"
        else:
            end = f"{f'<{action}Result/>' if action in _WITH_RESULT else ''}{_metadata(request_id)}{end}"
        return Reply.of_pieces(200, CONTENT_TYPE, lambda: chain([start], _members(result, action), [end]))

    def error(self, fault: SqsError, request_id: str) -> Reply:
        message = str(fault)
        if message == NO_QUEUE:
            message = f"{NO_QUEUE[:-1]} for this wsdl version."
        error = f"<Type>{fault.fault}</Type><Code>{fault.code}</Code><Message>{_escaped(self.clean(message))}</Message>"
        written = (
            f'{_DECLARATION}<ErrorResponse xmlns="{_NAMESPACE}"><Error>{error}<Detail/></Error>'
            f"<RequestId>{request_id}</RequestId></ErrorResponse>"
        )
        return Reply.of(fault.status, CONTENT_TYPE, written)


def fields_of(query: str, body: bytes) -> dict[str, str]:
    """Return the fields of a query string and of a form; the form's fields replace the others. Raises SqsError."""
    found: dict[str, str] = {}
    for text in (query, body.decode("utf-8", "replace")):
        if text.count("&") >= MOST_FIELDS:
            raise SqsError("InvalidParameterValueException", "the request has too many fields")
        for field in text.split("&"):
            if field:
                name, _, value = field.partition("=")
                found[_unescaped(name)] = _unescaped(value)
    return found


def _unescaped(text: str) -> str:
    """Decode a name or a value of a form, as urllib's unquote does, which makes an object of each escaped byte."""
    if "%" not in text:
        return text.replace("+", " ")
    decoded = _ESCAPED.sub(
        lambda run: bytes.fromhex(run[0].replace(b"%", b"").decode()), text.replace("+", " ").encode("utf-8", "replace")
    )
    return decoded.decode("utf-8", "replace")


def _tree(fields: Mapping[str, str]) -> _Tree:
    """Return the fields as objects in objects, by the dots in their names."""
    tree: _Tree = {}
    for name, value in fields.items():
        node, parts = tree, name.split(".")
        if len(parts) > _MOST_PARTS:
            continue
        for part in parts[:-1]:
            inner = node.setdefault(part, {})
            if not isinstance(inner, dict):
                inner = node[part] = {}
            node = inner
        if not isinstance(node.get(parts[-1]), dict):
            node[parts[-1]] = value
    return tree


def _document(tree: _Tree) -> dict[str, Any]:
    """Return a tree as the JSON protocol would write it."""
    document: dict[str, Any] = {}
    for name, value in tree.items():
        if name in _LISTS:
            document[_LISTS[name]] = [_document(item) if isinstance(item, dict) else item for item in _numbered(value)]
        elif name in _MAPS:
            member, key = _MAPS[name]
            document[member] = _map(value, key)
        elif name == "Value" and isinstance(value, dict):
            document[name] = _document(value)
        elif isinstance(value, str) and name not in _MEMBERS:
            document[name] = value
    return document


def _map(value: Any, key: str) -> dict[str, Any]:
    items = [value] if isinstance(value, dict) and key in value else _numbered(value)  # boto2 does not number one
    found = {}
    for item in items:
        if isinstance(item, dict) and isinstance(item.get(key), str):
            inner = item.get("Value", "")
            found[item[key]] = _document(inner) if isinstance(inner, dict) else inner
    return found


def _numbered(value: Any) -> list[Any]:
    """Return the values of a numbered field in order; a value without a number counts as one, an empty one as none."""
    if isinstance(value, str):
        return [value] if value else []
    numbers = sorted((int(number), number) for number in value if re.fullmatch(r"[0-9]{1,9}", number))
    return [value[number] for _, number in numbers]


def _metadata(request_id: str) -> str:
    return f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>"


def _members(result: Mapping[str, Any], action: str) -> Iterator[str]:
    for name, value in result.items():
        if isinstance(value, list):
            element = f"{action}ResultEntry" if name == "Successful" else _WRITTEN_LISTS[name]
            for item in value:
                yield _element(element, "".join(_members(item, action)) if isinstance(item, dict) else _escaped(item))
        elif isinstance(value, dict) and name in _WRITTEN_MAPS:
            element, key = _WRITTEN_MAPS[name]
            for inner, item in value.items():
                written = "".join(_members(item, action)) if isinstance(item, dict) else _escaped(item)
                yield _element(element, _element(key, _escaped(inner)) + _element("Value", written))
        else:
            yield _element(name, _scalar(value))


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _escaped(str(value))


def _element(name: str, content: str) -> str:
    return f"<{name}>{content}</{name}>"


def _escaped(text: str) -> str:
    for character, escape in _ESCAPES:  # str.translate takes 15 times as long for a large text
        text = text.replace(character, escape)
    return text
