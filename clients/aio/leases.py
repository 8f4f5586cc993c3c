"""Renew leases in a task of the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from ..consuming.leases import Extend, LeaseKeeper
from ..http.calls import Steps


class AsyncLeaseKeeper(LeaseKeeper):
    """Renews leases in a task, which runs while it has messages."""

    def __init__(self, run: Callable[[Steps[None]], Coroutine[Any, Any, None]], extend: Extend) -> None:
        super().__init__(extend)
        self._run_steps = run
        self._task: asyncio.Task[None] | None = None
        self._wakes = 0.0  # monotonic
        self._woken = asyncio.Event()

    def _wake(self, due: float) -> None:
        if self._held and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run(), name="lease-keeper")
        elif due < self._wakes:
            self._woken.set()

    async def _run(self) -> None:
        while (due := self._due(time.monotonic())) is not None:
            if isinstance(due, list):
                await self._run_steps(self._renew_due(due))
                continue
            self._wakes = due
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(due - time.monotonic()):
                    await self._woken.wait()
