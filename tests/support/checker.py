"""The total-queue checker: all acknowledged messages must be delivered, and no others.

Writers and readers (tests/support/load.py) are separate processes. Each appends every request to a history on disk
before it sends it, and then the reply. So a kill of a process or the service at any moment leaves an exact record: an
operation was acknowledged, refused, or its outcome is unknown. `judge` returns the Verdict on the histories:

lost        acknowledged, and never read. A leased message counts as read once it is settled.
unexpected  read, and never written (or the write was refused)
recovered   the write's outcome was unknown, and it was read, which is as correct as not
duplicated  delivered again against the rules of leases, or stored twice
disordered  has an id below that of a write that was acknowledged before its request

Every text is written only once, so a text identifies its message.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROUNDING = 0.005  # seconds a lease may seem too short for: the service counts in whole ms


class Outcome(StrEnum):
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"  # the service said that nothing was done
    UNKNOWN = "unknown"


class Operation(NamedTuple):
    """One request as its process saw it. Times are of the monotonic clock, which all processes share."""

    kind: Literal["write", "read", "ack"]
    asked: float
    given: Sequence[str] = ()  # texts written, receipts acknowledged
    lease: float | None = None  # seconds
    outcome: Outcome = Outcome.UNKNOWN
    answered: float = float("inf")
    got: Sequence[Any] = ()  # ids written, messages read, invalid receipts


class Delivery(NamedTuple):
    id: str
    asked: float
    answered: float
    lease: float | None
    receipt: str | None
    receive_count: int


@dataclass(frozen=True)
class Verdict:
    acknowledged: int
    refused: int
    unknown: int
    read: int
    recovered: int
    lost: list[str]
    unexpected: list[str]
    duplicated: list[str]
    disordered: list[str]

    @property
    def faultless(self) -> bool:
        return not (self.lost or self.unexpected or self.duplicated or self.disordered)

    @property
    def figures(self) -> dict[str, int]:
        """Return the verdict's columns in the table of faults."""
        return {"acknowledged": self.acknowledged} | {name: len(texts) for name, texts in self._faults.items()}

    @property
    def _faults(self) -> dict[str, list[str]]:
        return {name: getattr(self, name) for name in ("lost", "unexpected", "duplicated", "disordered")}

    def __str__(self) -> str:
        counts = [f"{name} {len(texts)} {texts[:5] or ''}".rstrip() for name, texts in self._faults.items()]
        return f"acknowledged {self.acknowledged} | unknown {self.unknown} | " + " | ".join(counts)


def judge(operations: Iterable[Operation], written_as: Callable[[str], str] = lambda text: text) -> Verdict:
    """Return the verdict. `written_as` maps a text read to the text written, if a pipeline is in between."""
    writes, deliveries, settled = [], dict[str, list[Delivery]](), dict[str, Outcome]()
    for operation in operations:
        if operation.kind == "write":
            writes.append(operation)
        elif operation.kind == "read":
            for message in operation.got:
                deliveries.setdefault(written_as(message["text"]), []).append(_delivery(operation, message))
        elif operation.outcome is not Outcome.REFUSED:
            settled |= dict.fromkeys(set(operation.given) - set(operation.got), operation.outcome)
    texts = {outcome: {t for write in writes if write.outcome is outcome for t in write.given} for outcome in Outcome}
    read = {
        text
        for text, all_of_it in deliveries.items()
        if any(one.receipt is None or one.receipt in settled for one in all_of_it)
    }
    return Verdict(
        acknowledged=len(texts[Outcome.ACKNOWLEDGED]),
        refused=len(texts[Outcome.REFUSED]),
        unknown=len(texts[Outcome.UNKNOWN]),
        read=len(read),
        recovered=len(texts[Outcome.UNKNOWN] & read),
        lost=sorted(texts[Outcome.ACKNOWLEDGED] - read),
        unexpected=sorted(deliveries.keys() - texts[Outcome.ACKNOWLEDGED] - texts[Outcome.UNKNOWN]),
        duplicated=sorted(text for text, all_of_it in deliveries.items() if _is_duplicated(all_of_it, settled)),
        disordered=sorted(_disordered([write for write in writes if write.outcome is Outcome.ACKNOWLEDGED])),
    )


def _delivery(read: Operation, message: dict[str, Any]) -> Delivery:
    receipt, count = message.get("receipt"), message.get("receive_count", 0)
    return Delivery(message["id"], read.asked, read.answered, read.lease, receipt, count)


def _is_duplicated(deliveries: list[Delivery], settled: dict[str, Outcome]) -> bool:
    if len({one.id for one in deliveries}) > 1:
        return True
    final = [one for one in deliveries if one.receipt is None or settled.get(one.receipt) is Outcome.ACKNOWLEDGED]
    if len(final) > 1:
        return True
    leased = sorted((one for one in deliveries if one.receipt is not None), key=lambda one: one.receive_count)
    if final and final[0].receipt is not None and final[0] is not leased[-1]:
        return True  # redelivered although it was settled
    return any(
        after.receive_count == before.receive_count
        or after.answered < before.asked + (before.lease or 0) - ROUNDING  # the lease cannot have ended yet
        for before, after in pairwise(leased)
    )


def _disordered(writes: list[Operation]) -> Iterator[str]:
    by_answer = iter(sorted(writes, key=lambda write: write.answered))
    earlier, highest = next(by_answer, None), 0
    for write in sorted(writes, key=lambda write: write.asked):
        while earlier is not None and earlier.answered < write.asked:
            highest = max(highest, *map(int, earlier.got))
            earlier = next(by_answer, None)
        ids = [int(number) for number in write.got]
        if ids != sorted(set(ids)) or ids[0] <= highest:
            yield write.given[0]


# The history


class History:
    """Appends operations to a file; the operating system has each line before the next step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    def asking(self, kind: str, given: Sequence[str] = (), lease: float | None = None) -> None:
        self._append(kind=kind, asked=time.monotonic(), given=given, lease=lease)

    def answered(self, outcome: Outcome, got: Sequence[Any] = ()) -> None:
        self._append(outcome=outcome, answered=time.monotonic(), got=got)

    def close(self) -> None:
        self._file.close()

    def _append(self, **record: Any) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")


def read_histories(directory: Path) -> Iterator[Operation]:
    """Yield all operations of all processes. An operation without a complete answer is unknown."""
    for path in sorted(directory.glob("*.jsonl")):
        asked: dict[str, Any] | None = None
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # its process was killed during this write
            record = json.loads(line)
            if "asked" in record:
                if asked is not None:
                    yield Operation(**asked)
                asked = record
            elif asked is not None:
                yield Operation(**asked | record | {"outcome": Outcome(record["outcome"])})
                asked = None
        if asked is not None:
            yield Operation(**asked)
