"""A worker: a handler for messages, several at a time, and each settled by how the handler ended."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

from ..http.transport import Run
from ..messages import LeasedMessage
from ..reading import Reader
from ..settling import report_stale
from .leasing import Leasing, check_work, is_async
from .options import Loop

Handler = Callable[[LeasedMessage], object]
SignalHandler = Callable[[int, FrameType | None], Any] | int | None

CHECK_EVERY = 0.1  # seconds between two checks whether to stop


class Worker:
    """The threads that run a handler, and the loop that leases messages for those that have none.

    A thread gets a chain: the messages of one read that have the same key, which must be handled in their order.
    """

    def __init__(
        self,
        make: Callable[..., LeasedMessage],
        run: Run,
        reader: Reader,
        loop: Loop,
        handler: Handler,
        concurrency: int,
    ) -> None:
        check_work(handler, concurrency)
        if is_async(handler):  # a call would only make a coroutine, and the message would be acked
            raise TypeError("the handler is an async function; pass a plain one that runs it, as with asyncio.run")
        self._run_steps = run
        self._leased = reader.leased
        self._loop = loop
        self._handler = handler
        self._leasing = Leasing(reader, loop, concurrency, make, self._is_ending)
        self._concurrency = concurrency
        self._is_closed = reader.is_closed
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
        with signals(self._stop):
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
        return self._stopped or self._loop.is_stopped() or self._is_closed()

    def _lease_messages(self) -> None:
        """Lease as many messages as threads wait for, again and again, until the end."""
        idle_threads = 0
        while not self._is_ending():
            idle_threads += self._await_idle(block=idle_threads == 0)
            if not idle_threads:
                break  # the end came first
            chains = self._run_steps(self._leasing.next_chains(idle_threads))
            if chains is None:
                return
            for chain in chains:
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
            self._run_steps(self._leased.release_unworked(chain))

    def _is_acked(self, message: LeasedMessage) -> bool:
        """Handle the message and settle it. Raises what is no Exception of the handler, and QueueError of the ack."""
        if self._run_steps(self._loop.reject_exhausted(self._leased, message)):
            return False
        try:
            self._handler(message)
        except BaseException as error:
            self._run_steps(self._loop.retry_failed(self._leased, message, error))
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
                report_stale(self._run_steps(self._leased.ack_last(done)))


@contextmanager
def signals(
    stop: Callable[[], object], leaves: Callable[[SignalHandler], bool] = lambda handler: False
) -> Iterator[None]:
    """Call `stop` at the first SIGTERM or SIGINT. A second one has its effect from before, as has one in a child.

    A signal that the process ignores, or whose handler `leaves` accepts, keeps its effect. Outside the main thread,
    where Python handles no signals, do nothing.
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
        if handler in (signal.SIG_IGN, None) or leaves(handler):  # None: not set by Python, so it cannot be restored
            del before[number]
        else:
            signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
