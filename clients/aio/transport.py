"""Await HTTP calls: connections, timeouts, and what a cancelled caller leaves behind."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
from yarl import URL

from ..errors import Closed, QueueError, Unreachable
from ..http.calls import NO_REPLY, Answer, Call, IsCut, Pause, Reply, Service, Steps, Tries, never
from ..http.connection_pool import CUT_ANSWERED_WITHIN, CUT_CHECKED_EVERY
from ..reading import LONGEST_UNCUT_WAIT

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

LARGE = 1024 * 1024  # bytes; aiohttp warns of a larger body that is not a stream
SENT_WITHIN = 0.05  # seconds between a call's connection and its request

T = TypeVar("T")


class AsyncTransport:
    """Calls to one service, from one event loop.

    A call that leases messages, and one that settles finished work, outlives the task that makes it: if that is
    cancelled, the call ends in the background. `release` releases the messages of a reply that came too late.
    """

    def __init__(self, service: Service, release: Callable[[Reply], Steps[None]]) -> None:
        self.can_cut = service.tls is None and not service.proxies  # TLS cannot close one half of a connection
        self._service = service
        self._release = release
        self._closed = False
        self._session: aiohttp.ClientSession | None = None  # made by the first call, since it needs a running loop
        self._loop: asyncio.AbstractEventLoop | None = None  # that of the first call
        self._calls = 0  # that run now
        self._polls: set[_Poll] = set()
        self._background: set[asyncio.Task[None]] = set()

    async def run(self, steps: Steps[T]) -> T:
        """Take the steps, and return their result. Raises ProblemError, Closed, Unreachable."""
        self.check_loop()
        try:
            step = next(steps)
            while True:
                try:
                    reply = await self.take(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    async def take(self, step: Call | Pause) -> Reply:
        """Make the call and return its reply, or pause. Raises ProblemError, Closed, Unreachable."""
        if isinstance(step, Pause):
            await _sleep(step.seconds, step.is_cut or self.is_closed)
            return NO_REPLY
        if not step.last:
            self.check_open()
        return await (self._outliving_call(step) if step.late_reply or step.last else self._call(step))

    def cut_polls(self) -> None:
        """End the polls whose `is_cut` returns True."""
        for poll in self._polls:
            poll.cut_if_asked()

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run this in a task that `close` waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """End polls, and wait for the background. Calls are not retried, and later ones raise Closed."""
        self._closed = True
        self.cut_polls()
        await self.settled()
        if not self._calls:
            await self._end_session()

    async def settled(self) -> None:
        """Wait until what cancelled tasks left behind is done."""
        while self._background:
            await asyncio.wait(self._background)

    def is_closed(self) -> bool:
        return self._closed

    def check_open(self) -> None:
        """Raise Closed after `close`."""
        if self._closed:
            raise Closed("this client was closed")

    def check_loop(self) -> None:
        """Raise RuntimeError outside the event loop of the first call: connections and locks belong to it."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop and not self._closed:
            raise RuntimeError("this client belongs to another event loop: make one client for each")

    def check_usable(self) -> None:
        """Raise as check_open and check_loop."""
        self.check_open()
        self.check_loop()

    async def _outliving_call(self, call: Call) -> Reply:
        poll = _Poll(call.is_cut or self.is_closed, self.can_cut)
        task = asyncio.create_task(self._poll(call, poll) if call.late_reply else self._call(call))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            poll.cut()
            self.in_background(self._finish(call, task))
            raise

    async def _finish(self, call: Call, task: asyncio.Task[Reply]) -> None:
        with suppress(QueueError):  # nothing was leased
            try:
                reply = await task
            except Unreachable:  # after a cut, its reply may have been dropped
                if call.late_reply is None:
                    return
                reply = await self.run(call.late_reply())
            if call.late_reply is not None:
                await self.run(self._release(reply))

    async def _poll(self, call: Call, poll: _Poll) -> Reply:
        self._polls.add(poll)
        try:
            return await self._call(call, poll)
        finally:
            self._polls.discard(poll)

    async def _call(self, call: Call, poll: _Poll | None = None) -> Reply:
        """Return the reply if it reports success. Raises ProblemError, or Unreachable after the last try."""
        ends_early = never if call.last else poll.is_cut if poll else self.is_closed
        tries = Tries(self._service, call, ends_early)
        headers = self._service.headers(call)
        self._calls += 1
        try:
            while True:
                outcome: Answer | Exception
                try:
                    _current_try.set(_Try(poll))
                    outcome = await self._try_once(call, headers, tries.timeout)
                except (aiohttp.ClientError, OSError) as error:
                    outcome = _cause(error)
                found = tries.judge(outcome)
                if isinstance(found, Reply):
                    return found
                if await _sleep(found.pause, ends_early):
                    raise found.fault
        finally:
            self._calls -= 1
            if self._closed and not self._calls:
                await self._end_session()

    async def _try_once(self, call: Call, headers: dict[str, str], timeout: float) -> Answer:
        if self._session is None:
            self._session = self._new_session()
        body = io.BytesIO(call.body) if call.body and len(call.body) > LARGE else call.body
        async with self._session.request(
            call.method,
            URL(self._service.url + call.path, encoded=True),
            data=body,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=timeout + call.waits, sock_connect=timeout),
        ) as response:
            return response.status, response.headers, await response.read()

    def _new_session(self) -> aiohttp.ClientSession:
        scheme = self._service.url.partition(":")[0]
        return aiohttp.ClientSession(
            connector=_Connector(limit=0, ssl=self._service.tls or True),
            proxy=self._service.proxies.get(scheme) or self._service.proxies.get("all"),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=["Accept-Encoding", "Content-Type"],
        )

    async def _end_session(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()


class _Poll:
    """A call that leases messages, and may have to end before its reply.

    A cut closes only the sending half of its connection: the service takes no messages for a reader that has hung up,
    and the reply to a reader that hung up too late still arrives. So no message is leased unseen.
    """

    def __init__(self, is_asked: IsCut, can_hang_up: bool) -> None:
        self._is_asked = is_asked
        self._can_hang_up = can_hang_up
        self._is_cut = False
        self._connection: Connection | None = None
        self._sent_by = 0.0  # monotonic

    def is_cut(self) -> bool:
        return self._is_cut or self._is_asked()

    def cut_if_asked(self) -> None:
        if not self._is_cut and self._is_asked():
            self.cut()

    def cut(self) -> None:
        self._is_cut = True
        loop = asyncio.get_running_loop()
        if self._can_hang_up and self._connection is not None:
            loop.call_later(self._sent_by - time.monotonic(), _hang_up, self._connection)
        loop.call_later(CUT_ANSWERED_WITHIN if self._can_hang_up else LONGEST_UNCUT_WAIT, self._abort)

    def connected(self, connection: Connection) -> None:
        """Record the connection of the current try, whose request is sent next."""
        self._connection = connection
        self._sent_by = time.monotonic() + SENT_WITHIN
        if self.is_cut():
            self.cut()

    def _abort(self) -> None:
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.abort()


def _hang_up(connection: Connection) -> None:
    """Close the sending half of a connection, unless its reply has come, and other calls may use it."""
    if connection.protocol is None or connection.transport is None:
        return
    if connection.transport.get_write_buffer_size():
        asyncio.get_running_loop().call_later(SENT_WITHIN, _hang_up, connection)
        return
    connection.protocol.force_close()  # it cannot carry another call
    with suppress(OSError):  # the service has just disconnected
        connection.transport.write_eof()


@dataclass(slots=True)
class _Try:
    """One try of a call."""

    poll: _Poll | None
    is_connected: bool = False


class _Connector(aiohttp.TCPConnector):
    """Connections, of which each try gets one."""

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:
        current = _current_try.get()
        if current.is_connected:  # aiohttp would repeat a GET or DELETE by itself, and not report that a reply was lost
            raise ConnectionResetError
        connection = await super().connect(req, traces, timeout)
        current.is_connected = True
        if current.poll:
            current.poll.connected(connection)
        return connection


_current_try: ContextVar[_Try] = ContextVar("try")


def _cause(error: aiohttp.ClientError | OSError) -> Exception:
    """Return the error below a failed connection."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return error.certificate_error
    return error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error


async def _sleep(seconds: float, is_cut: IsCut) -> bool:
    """Sleep these seconds and return False; return True once `is_cut` does."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(left, CUT_CHECKED_EVERY))
        if is_cut():
            return True
    return False
