"""Actions that move dead letters back to their queues, or to another one."""

from __future__ import annotations

import binascii
import json
from base64 import b64decode, b64encode
from typing import Any

from storage.errors import MoveNotFound, MoveRunning, QueueNotFound
from storage.model import Move
from web.sqs.call import Call, Result
from web.sqs.errors import SqsError, invalid_value
from web.sqs.names import arn_of, name_in_arn

_MOST_RATE = 500  # messages a second
_MOST_RESULTS = 10
_FAILURES = {
    "no_origin": "CouldNotDetermineMessageSource",
    "queue_not_found": "AWS.SimpleQueueService.NonExistentQueue",
}


def start_message_move_task(call: Call) -> Result:
    source = _queue_of(call, call.parameters.required("SourceArn"), "SourceArn")
    if not call.store.sources(source, limit=1):
        raise invalid_value("Source queue must be configured as a Dead Letter Queue.")
    to = call.parameters.text("DestinationArn")
    target = _queue_of(call, to, "DestinationArn") if to else None
    rate = call.parameters.number("MaxNumberOfMessagesPerSecond", 1, _MOST_RATE)
    try:
        move = call.store.start_move(source, target, rate)
    except MoveRunning:
        raise invalid_value(
            "There is already a task running. Only one active task is allowed for a source queue arn at a given time."
        ) from None
    return {"TaskHandle": _handle(call, move)}


def cancel_message_move_task(call: Call) -> Result:
    try:
        task = json.loads(b64decode(call.parameters.required("TaskHandle"), validate=True))
        number, arn = str(task["taskId"]), str(task["sourceArn"])
    except (binascii.Error, ValueError, TypeError, KeyError, RecursionError):
        raise invalid_value("Value for parameter TaskHandle is invalid.") from None
    source = _queue_of(call, arn, "SourceArn")
    try:
        if not number.isprintable():  # the store cannot hold all of these characters
            raise MoveNotFound
        move = call.store.cancel_move(source, number)
    except MoveNotFound:
        raise SqsError("ResourceNotFoundException", "Task does not exist.") from None
    return {"ApproximateNumberOfMessagesMoved": move.moved}


def list_message_move_tasks(call: Call) -> Result:
    source = _queue_of(call, call.parameters.required("SourceArn"), "SourceArn")
    limit = call.parameters.number("MaxResults", 1, _MOST_RESULTS) or 1
    moves = call.store.moves(source, limit)
    return {"Results": [_described(call, move) for move in moves]} if moves else {}


def _queue_of(call: Call, arn: str, parameter: str) -> str:
    name = name_in_arn(arn)
    if name is None:
        raise invalid_value(
            f"You must use this format to specify the {parameter}: "
            "arn:<partition>:<service>:<region>:<account-id>:<resource-id>"
        )
    try:
        call.store.settings(name)
    except QueueNotFound:
        raise SqsError(
            "ResourceNotFoundException", f"The resource that you specified for the {parameter} parameter doesn't exist."
        ) from None
    return name


def _described(call: Call, move: Move) -> dict[str, Any]:
    members: dict[str, Any] = {"Status": move.status.upper(), "SourceArn": arn_of(call.region, move.source)}
    if move.status == "running":
        members["TaskHandle"] = _handle(call, move)
    if move.to is not None:
        members["DestinationArn"] = arn_of(call.region, move.to)
    if move.rate is not None:
        members["MaxNumberOfMessagesPerSecond"] = move.rate
    members["ApproximateNumberOfMessagesMoved"] = move.moved
    members["ApproximateNumberOfMessagesToMove"] = move.to_move
    if move.failure is not None:
        members["FailureReason"] = _FAILURES.get(move.failure, move.failure)
    return members | {"StartedTimestamp": move.started_at}


def _handle(call: Call, move: Move) -> str:
    task = {"taskId": move.task, "sourceArn": arn_of(call.region, move.source)}
    return b64encode(json.dumps(task, separators=(",", ":")).encode()).decode()
