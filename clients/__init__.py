"""The client of a queue service: QueueClient, its messages and its errors."""

from clients.client import QueueClient
from clients.errors import (
    BadRequest,
    Forbidden,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    ProblemError,
    QueueError,
    QueueFull,
    StaleReceipt,
    TooManyFailures,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from clients.messages import AckResult, Attribute, Lease, Message, NextMessages, Outgoing, TransactionReply
from clients.runs import Run

__all__ = [
    "AckResult",
    "Attribute",
    "BadRequest",
    "Forbidden",
    "Lease",
    "Message",
    "NextMessages",
    "NotAllowed",
    "NotFound",
    "Outgoing",
    "PreconditionFailed",
    "ProblemError",
    "QueueClient",
    "QueueError",
    "QueueFull",
    "Run",
    "StaleReceipt",
    "TooManyFailures",
    "TransactionReply",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
]
