"""The errors of the SQS API: their shapes, codes and statuses, and the one table from the service's own errors."""

from __future__ import annotations

import logging
from collections.abc import Callable

from storage import errors
from web.access import authentication
from web.native.request import BadRequest, BodyTooLarge, CrossOrigin, Prefetch, UnknownHost, UnsupportedMediaType

_log = logging.getLogger("queue_service")

_PREFIX = "AWS.SimpleQueueService."
# Shapes of the service's model, and the code of each that the query protocol names differently.
_MODELLED = {
    "QueueDoesNotExist": f"{_PREFIX}NonExistentQueue",
    "QueueNameExists": "QueueAlreadyExists",
    "InvalidAttributeName": "InvalidAttributeName",
    "InvalidAttributeValue": "InvalidAttributeValue",
    "InvalidMessageContents": "InvalidMessageContents",
    "ReceiptHandleIsInvalid": "ReceiptHandleIsInvalid",
    "EmptyBatchRequest": f"{_PREFIX}EmptyBatchRequest",
    "TooManyEntriesInBatchRequest": f"{_PREFIX}TooManyEntriesInBatchRequest",
    "BatchEntryIdsNotDistinct": f"{_PREFIX}BatchEntryIdsNotDistinct",
    "InvalidBatchEntryId": f"{_PREFIX}InvalidBatchEntryId",
    "BatchRequestTooLong": f"{_PREFIX}BatchRequestTooLong",
    "ResourceNotFoundException": "ResourceNotFoundException",
    "UnsupportedOperation": f"{_PREFIX}UnsupportedOperation",
    "OverLimit": "OverLimit",
    "RequestThrottled": "RequestThrottled",
}
_COMMON = {
    "InvalidParameterValueException": "InvalidParameterValue",
    "MissingRequiredParameterException": "MissingParameter",
    "UnknownOperationException": "InvalidAction",
    "UnrecognizedClientException": "InvalidClientTokenId",
    "InvalidSignatureException": "SignatureDoesNotMatch",
    "MissingAuthenticationTokenException": "MissingAuthenticationToken",
}
_STATUSES = {
    "ReceiptHandleIsInvalid": 404,
    "ResourceNotFoundException": 404,
    "OverLimit": 403,
    "RequestThrottled": 403,
    "UnrecognizedClientException": 403,
    "InvalidSignatureException": 403,
    "MissingAuthenticationTokenException": 403,
    "AccessDeniedException": 403,
    "RequestEntityTooLarge": 413,
    "MisdirectedRequest": 421,
    "InternalFailure": 500,
    "ServiceUnavailable": 503,
}
NO_QUEUE = "The specified queue does not exist."


class SqsError(Exception):
    """An error as the SQS API describes it; `str()` is its message."""

    def __init__(self, shape: str, message: str) -> None:
        super().__init__(message)
        self.shape = shape

    @property
    def type(self) -> str:
        """Return the shape with its namespace."""
        return f"com.amazon{'aws.sqs' if self.shape in _MODELLED else '.coral.service'}#{self.shape}"

    @property
    def code(self) -> str:
        """Return the code of the query protocol."""
        return _MODELLED.get(self.shape) or _COMMON.get(self.shape, self.shape)

    @property
    def status(self) -> int:
        return _STATUSES.get(self.shape, 400)

    @property
    def fault(self) -> str:
        """Return whose fault it is: the sender's or the receiver's."""
        return "Sender" if self.status < 500 else "Receiver"


def invalid_value(message: str) -> SqsError:
    return SqsError("InvalidParameterValueException", message)


def invalid(value: object, parameter: str, reason: str) -> SqsError:
    """Return the error for a parameter's value, in the words of AWS."""
    return invalid_value(f"Value {value} for parameter {parameter} is invalid. Reason: {reason}")


def missing(parameter: str) -> SqsError:
    return SqsError("MissingRequiredParameterException", f"The request must contain the parameter {parameter}.")


def no_queue() -> SqsError:
    return SqsError("QueueDoesNotExist", NO_QUEUE)


# The nearest class of an exception's hierarchy applies.
_SHAPES: dict[type[Exception], str] = {
    BadRequest: "SerializationException",
    UnsupportedMediaType: "SerializationException",
    BodyTooLarge: "RequestEntityTooLarge",
    CrossOrigin: "AccessDeniedException",
    Prefetch: "AccessDeniedException",
    UnknownHost: "MisdirectedRequest",
    authentication.Forbidden: "AccessDeniedException",
    authentication.TooManyFailures: "RequestThrottled",
    errors.InvalidInput: "InvalidParameterValueException",
    errors.QueueFull: "OverLimit",
    errors.IdempotencyMismatch: "InvalidParameterValueException",
    errors.Unavailable: "ServiceUnavailable",
}
_WORDS: dict[type[Exception], Callable[[], SqsError]] = {errors.QueueNotFound: no_queue}


def error_of(fault: Exception, request_id: str) -> SqsError:
    """Return an exception as an error of the SQS API. Log an exception outside the table, with the request's id."""
    if isinstance(fault, SqsError):
        return fault
    for kind in type(fault).__mro__:
        if kind in _WORDS:
            return _WORDS[kind]()
        if kind in _SHAPES:
            return SqsError(_SHAPES[kind], str(fault))
    _log.error("internal error %s", request_id, exc_info=fault)
    return SqsError("InternalFailure", f"see the service's log for the reference {request_id}")
