"""Call a queue service over HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Self, TypeVar, Unpack, overload

from .consuming.leases import ThreadedLeaseKeeper
from .consuming.loop import consume, iterate
from .consuming.options import Consuming, loop_of
from .consuming.worker import Handler, Worker
from .http.calls import Steps
from .http.transport import Transport
from .messages import (
    Lease,
    Leased,
    LeasedMessage,
    Message,
    NextMessages,
    Outgoing,
    Reading,
    TransactionReply,
    parse_leased,
    parse_message,
)
from .reading import Reader
from .settling import LeasedMessages
from .verbs import Blocking, Verbs

T = TypeVar("T")


class QueueClient(Verbs, Blocking):
    """One queue service; `queue` is used where a call names none. Threads may share a client, as may forked processes.

    The defaults are $QUEUE_URL, or else http://127.0.0.1:5000, and $QUEUE_TOKEN. `timeout` (s) is for connecting and
    for one reply. `retry_for` (s; math.inf for ever) is how long a call is retried after a failed connection, a lost
    reply, or a 429, 502, 503 or 504. Retries back off, and obey Retry-After. All tries of a call that changes something
    carry one Idempotency-Key, so the service does it once. A retried read returns what the first try took. `trust_env`
    uses proxy and certificate settings of the environment; `verify` is as in requests. Every call raises ProblemError
    with the service's problem document, or Unreachable.
    """

    def is_closed(self) -> bool:
        return self._transport.is_closed()

    @overload
    def receive(
        self, *, lease: Lease, limit: int = 1, wait: float = 0, **source: Unpack[Reading]
    ) -> list[LeasedMessage]: ...

    @overload
    def receive(self, *, limit: int = 1, wait: float = 0, **source: Unpack[Reading]) -> list[Message]: ...

    def receive(
        self, *, limit: int = 1, wait: float = 0, lease: Lease | None = None, **source: Unpack[Reading]
    ) -> list[Message] | list[LeasedMessage]:
        """Return up to `limit` messages (1–1000) as soon as there is one, or none after `wait` seconds.

        Without a lease they are removed from the queue: delivered at most once. With one, in seconds or "default"
        for the queue's own, they are invisible to others until it ends, and must be acked. `recipient` reads only
        messages addressed to it, `any_recipient` reads all, neither reads unaddressed ones. `queues` reads from
        several, in this order of preference.

            for message in client.receive(limit=10, wait=20, lease=60):
                message.ack()
        """
        chosen = self._source("receive", source)
        documents = self._run(self._reader.read(chosen, limit, wait, lease))
        if lease is not None:
            return parse_leased(documents, chosen.name, self._make)
        return [parse_message(document, chosen.name) for document in documents]

    def consume(
        self, *, batch: int = 1, max_tries: int | None = None, **options: Unpack[Consuming]
    ) -> Iterator[LeasedMessage]:
        """Yield messages one after the other, until there was none for `idle` seconds, `stop` is set, or `close`.

        A message is acked when the loop asks for the next one, unless the body settled it. Its lease (s) is renewed
        in the background while the body works. `batch` is how many are leased at once. Raises QueueError if the
        service fails for `retry_for`.

        If the body breaks or raises, its message is redelivered after a second. The pause doubles at each further
        delivery, up to five minutes, or is that of `backoff`. At the last of `max_tries` it is dead-lettered instead.
        Settle it before the break to do neither. Messages that the body has not seen are released at once, as if they
        had not been delivered. A signal does so only if its handler raises, as that of SIGINT does, or sets `stop`.

            for message in client.consume(lease=60, max_tries=5):
                make_thumbnail(message.text)
        """
        self._transport.check_open()
        loop = loop_of("consume", self.queue, max_tries, options, is_async=False)
        return iterate(consume(self._reader, loop, batch, self._make), self._transport.take)

    def work(
        self, handler: Handler, *, concurrency: int = 8, max_tries: int | None = 5, **options: Unpack[Consuming]
    ) -> None:
        """Call the handler with each message, with `concurrency` of them at once, in threads. Return as consume ends.

        In the main thread, SIGTERM and SIGINT end it too; a second one ends the process. Running handlers are finished
        first, and other messages are released, as if they had not been delivered.

        If the handler returns, the message is acked, unless the handler settled it. If it raises, the message is
        released, as in consume, or at the last of `max_tries` rejected with the exception as the reason. Messages of
        one key are handled in order. Raises QueueError if the service fails for `retry_for`.

            client.work(lambda message: make_thumbnail(message.text), concurrency=4)
        """
        self._transport.check_open()
        loop = loop_of("work", self.queue, max_tries, options, is_async=False)
        Worker(self._make, self._run, self._reader, loop, handler, concurrency).run()

    def transact(
        self,
        *,
        ack: Iterable[Leased | str] = (),
        send: Iterable[str | Outgoing] = (),
        receive: NextMessages | None = None,
        idempotency_key: str | None = None,
    ) -> TransactionReply:
        """Ack and send, over any queues, in one commit: all or nothing; then receive, in the same request.

        Raises StaleReceipt if a receipt is no longer valid; then nothing was done.

            client.transact(ack=[message], send=[{"queue": "thumbnails", "text": "cat-small.png"}])
        """
        return TransactionReply(*self._run(self._transact(ack, send, receive, idempotency_key, self._make)))

    def close(self) -> None:
        """Let later calls raise Closed, and calls that wait for a retry or for messages give up.

        Loops end once their body or handlers have returned; messages that these have not seen are released now.
        """
        unworked = self._leased.keeper.close()
        self._transport.close()
        self._run(self._leased.release_unworked(unworked))

    def __enter__(self) -> Self:
        self._transport.check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _connect(self) -> None:
        transport = self._transport = Transport(self._service)
        self._leased = LeasedMessages(transport.is_closed, partial(ThreadedLeaseKeeper, transport.run))
        self._reader = Reader(
            self._leased,
            transport.is_closed,
            can_cut=transport.can_cut,
            drops_late_replies=transport.drops_late_replies,
        )

    def _run(self, steps: Steps[T]) -> T:
        return self._transport.run(steps)

    def _make(self, **fields: Any) -> LeasedMessage:
        return LeasedMessage(**fields, _client=self)
