"""The clients of a queue service: QueueClient, AsyncQueueClient, their messages and their errors."""

from typing import TYPE_CHECKING

from .aio.messages import AsyncLeasedMessage, AsyncTransactionReply
from .client import QueueClient
from .column_batches import ColumnBatch
from .consuming.options import Backoff, exponential_backoff
from .errors import (
    BadRequest,
    Closed,
    Forbidden,
    MessageLeased,
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
from .messages import (
    AckResult,
    Attribute,
    ExtendResult,
    Lease,
    LeasedMessage,
    Message,
    NextMessages,
    Outgoing,
    SentId,
    SentIds,
    TransactionReply,
)
from .queues import NodeStatus, QueueSettings, QueueState, QueueStats, Reason, Reasons, SettingsChanges

if TYPE_CHECKING:
    from .aio.client import AsyncQueueClient as AsyncQueueClient

__all__ = [
    "AckResult",
    "AsyncLeasedMessage",
    "AsyncTransactionReply",
    "Attribute",
    "Backoff",
    "BadRequest",
    "Closed",
    "ColumnBatch",
    "ExtendResult",
    "Forbidden",
    "Lease",
    "LeasedMessage",
    "Message",
    "MessageLeased",
    "NextMessages",
    "NodeStatus",
    "NotAllowed",
    "NotFound",
    "Outgoing",
    "PreconditionFailed",
    "ProblemError",
    "QueueClient",
    "QueueError",
    "QueueFull",
    "QueueSettings",
    "QueueState",
    "QueueStats",
    "Reason",
    "Reasons",
    "SentId",
    "SentIds",
    "SettingsChanges",
    "StaleReceipt",
    "TooManyFailures",
    "TransactionReply",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
    "exponential_backoff",
]


def __getattr__(name: str) -> object:
    """Import AsyncQueueClient for those who use it."""
    if name != "AsyncQueueClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .aio.client import AsyncQueueClient
    except ModuleNotFoundError as error:
        raise ImportError("AsyncQueueClient needs the extra async: pip install 'queue-service-http[async]'") from error
    return AsyncQueueClient
