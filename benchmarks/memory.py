"""the server's memory while 1,000,000 messages pass: sent in batches of 1,000, leased, acked.

Resident memory of all workers together, after each 50,000 messages, against that after the first 100,000.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from benchmarks.call import Caller, batch_of
from benchmarks.report import Figure, Result
from benchmarks.server import Service, service

MESSAGES = 1_000_000
WARM_UP = 100_000  # messages that fill caches
STEP = 50_000  # messages
BATCH = 1_000
MOST = 20.0  # MiB


def memory() -> list[Result]:
    with service() as server, ExitStack() as stack:
        callers = [stack.enter_context(closing(Caller(server.port))) for _ in range(4)]
        sizes = []
        for passed in range(0, MESSAGES, BATCH):
            caller = callers[passed // BATCH % len(callers)]  # several connections, so that all workers serve
            caller.send("default", batch_of(BATCH))
            caller.ack(caller.lease("default", BATCH))
            if passed >= WARM_UP and passed % STEP == 0:
                sizes.append(resident(server))
    base = sizes[0]
    furthest = max(sizes, key=lambda size: abs(size - base))
    off = abs(furthest - base)
    figure = Figure("resident memory", f"{furthest:.1f} MiB", f"{base:.1f} MiB", off, at_most=MOST, unit="MiB off")
    return [Result("furthest", f"after {WARM_UP:,}", [figure])]


def resident(server: Service) -> float:
    """Return the resident memory of all workers in MiB."""
    kib = 0
    for pid in server.workers:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                kib += int(line.split()[1])
    return kib / 1024
