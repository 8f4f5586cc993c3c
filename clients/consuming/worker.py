"""A worker: a handler for messages, several at a time, and each settled by how the handler ended."""

from __future__ import annotations

import inspect
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from ..errors import QueueError
from ..log import log
from ..messages import LeasedMessage, Settler, parse_leased
from ..reading import Reader
from ..settling import report_stale
from .options import Loop

Handler = Callable[[LeasedMessage], object]

LARGEST_READ = 1_000  # messages
BUSY_WAIT = 0.5  # seconds of a poll while handlers run, at least, if the worker ends when it was idle for less
CHECK_EVERY = 0.1  # seconds between two checks whether to stop


class Worker:
    """The threads that run a handler, and the loop that leases messages for those that have none.

    A thread gets a chain: the messages of one read that have the same key, which must be handled in their order.
    """

    def __init__(self, client: Settler, reader: Reader, loop: Loop, handler: Handler, concurrency: int) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be 1 or more, not {concurrency}")
        if not callable(handler):  # else each message would fail, and be dead-lettered
            raise TypeError(f"the handler must be a function that takes a message, not {type(handler).__name__}")
        if inspect.iscoroutinefunction(handler):  # a call would only make a coroutine, and the message would be acked
            raise TypeError("the handler is an async function; pass a plain one that runs it, as with asyncio.run")
        self._client = client
        self._reader = reader
        self._leased = reader.leased
        self._loop = loop
        self._handler = handler
        self._concurrency = concurrency
        self._process = os.getpid()
        self._stopped = False  # no lock, because a signal handler sets it
        self._failure: BaseException | None = None
        self._chains: SimpleQueue[list[LeasedMessage] | None] = SimpleQueue()  # None ends a thread
        self._idle: SimpleQueue[None] = SimpleQueue()  # one item for each thread that waits for a chain
        self._done: deque[LeasedMessage] = deque()
        self._acking = threading.Lock()

    def run(self) -> None:
        """Work as QueueClient.work specifies."""
        threads: list[threading.Thread] = []
        with _signals(self._stop):
            try:
                for number in range(1, self._concurrency + 1):
                    thread = threading.Thread(target=self._work, name=f"queue-worker-{number}", daemon=True)
                    thread.start()
                    threads.append(thread)
                self._lease_messages()
            except Exception as error:
                self._failure = self._failure or error
            finally:
                self._stop()
                for _ in threads:
                    self._chains.put(None)
            for thread in threads:  # a second SIGINT, which raises KeyboardInterrupt, does not wait for them
                thread.join()
        if self._failure is not None:
            raise self._failure

    def _stop(self) -> None:
        self._stopped = True

    def _is_ending(self) -> bool:
        return self._stopped or self._reader.is_closed() or self._loop.is_stopped()

    def _lease_messages(self) -> None:
        """Lease as many messages as threads wait for, again and again, until the end."""
        loop, idle_threads = self._loop, 0
        last = time.monotonic()
        while not self._is_ending():
            idle_threads += self._await_idle(block=idle_threads == 0)
            if not idle_threads:
                break  # the end came first
            asked = time.monotonic()
            is_busy = idle_threads < self._concurrency
            wait = self._reader.longest_wait
            if loop.idle is not None:
                wait = min(wait, max(loop.idle, BUSY_WAIT) if is_busy else max(0.0, last + loop.idle - asked))
            limit = min(idle_threads, LARGEST_READ)
            try:
                documents = self._reader.read(loop, limit, wait, loop.lease, is_cut=self._is_ending)
            except QueueError:
                if self._is_ending():
                    return
                raise
            if documents or is_busy:
                last = time.monotonic()
            elif loop.idle is not None and time.monotonic() >= last + loop.idle:
                return
            if not documents:
                continue
            messages = parse_leased(documents, loop.name, self._client)
            if self._is_ending() or not self._leased.keeper.renew(messages, loop.lease, asked):
                self._leased.release_all(messages, counted=False)
                return
            for chain in _chains(messages):
                self._chains.put(chain)
                idle_threads -= 1

    def _await_idle(self, block: bool) -> int:
        """Return the number of threads that have begun to wait; wait for one if asked to, but not past the end."""
        count = 0
        while True:
            try:
                self._idle.get(block and not count, CHECK_EVERY)
                count += 1
            except Empty:
                if count or not block or self._is_ending():
                    return count

    def _work(self) -> None:
        """Handle chains until the end: the main function of a thread."""
        while True:
            self._idle.put(None)
            chain = self._chains.get()
            if chain is None:
                return
            try:
                for message in chain:
                    if self._is_ending() or not self._leased.keeper.begin(message) or not self._is_acked(message):
                        break  # later messages of the key have to wait for this one
            except BaseException as error:
                self._failure = self._failure or error
                self._stop()
            if os.getpid() != self._process:  # the handler forked, and this is the child: the messages are the parent's
                return
            self._leased.release_unworked(chain)

    def _is_acked(self, message: LeasedMessage) -> bool:
        """Handle the message and settle it. Raises what is no Exception of the handler, and QueueError of the ack."""
        if self._loop.reject_exhausted(self._leased, message):
            return False
        try:
            self._handler(message)
        except BaseException as error:
            if self._leased.keeper.stop_renewing(message.receipt):
                pause = self._loop.retry(self._leased, message, f"{type(error).__name__}: {error}")
                log.warning(
                    "try %d of message %s in queue %s failed; %s", message.receive_count, message.id, message.queue,
                    "it was the last one" if pause is None else f"next try in {pause:.3g} s", exc_info=error,
                )  # fmt: skip
            if not isinstance(error, Exception):
                raise
            return False
        if not self._leased.keeper.stop_renewing(message.receipt):
            return False  # the handler settled it, and may have released it
        self._ack(message)
        return True

    def _ack(self, message: LeasedMessage) -> None:
        """Ack the message, in one request with those that finished while another thread acked."""
        self._done.append(message)
        with self._acking:
            if done := [self._done.popleft() for _ in range(len(self._done))]:
                report_stale(self._leased.ack_last(done))


def _chains(messages: Iterable[LeasedMessage]) -> Iterable[list[LeasedMessage]]:
    """Return messages of one queue and key together, in order, and each message without a key by itself."""
    chains: dict[object, list[LeasedMessage]] = {}
    for message in messages:
        together = message.receipt if message.key is None else (message.queue, message.key)
        chains.setdefault(together, []).append(message)
    return chains.values()


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first SIGTERM or SIGINT. A second one has its effect from before, as has one in a child.

    Outside the main thread, where Python handles no signals, do nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        restore()
        if os.getpid() == process:
            stop()
        else:
            signal.raise_signal(number)

    for number, handler in list(before.items()):
        if handler in (signal.SIG_IGN, None):  # None: not set by Python, so it cannot be restored
            del before[number]
        else:
            signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
