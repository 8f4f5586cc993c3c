"""the cost of a message's optional fields: sent, received with a lease and acked through the Store.

Each feature in turn with plain messages, in batches of 100 and one by one. Keys are measured with a backlog of 100,000
messages, each with its own key or all with one, against plain messages with the same backlog. The plain messages are in
rows of their own, like those with features. The last line shows the gain of packing them, which is the default.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.report import Figure, Result, compare, ours_to_other, us
from storage import open_store
from storage.model import NewMessage, Receive
from storage.sqlite import column_batches as sqlite_column_batches
from storage.store import Store
from storage.validation import MAX_BATCH

BACKLOG = 100_000
MOST = 1.5  # times the cost of a plain message
ROUNDS = 21
TIMEOUT = 60.0  # seconds
MESSAGES = {100: 1_000, 1: 100}  # in one round, by the size of its batches

Kinds = dict[str, Callable[[], dict[str, object]]]  # by name: returns a message's optional fields

_number = itertools.count()


def _key() -> dict[str, object]:
    return {"key": f"key-{next(_number) % BACKLOG}"}


def _one_key() -> dict[str, object]:
    return {"key": "the only one"}


# Each kind has a queue of the same name.
WITHOUT_BACKLOG: Kinds = {
    "plain": dict,
    "priority": lambda: {"priority": next(_number) % 10},
    "recipient": lambda: {"recipient": "worker-7"},
    "delay": lambda: {"delay": 0.001},
    "dedup_id": lambda: {"dedup_id": f"id-{next(_number)}"},
}
WITH_BACKLOG: Kinds = {
    "plain-backlog": dict,
    "100,000-keys": _key,
    "one-key": _one_key,
}


def features() -> list[Result]:
    figures = []
    with (
        tempfile.TemporaryDirectory(prefix="queue-bench-") as folder,
        closing(open_store(f"sqlite:///{Path(folder, 'queue.db')}")) as store,
    ):
        with _packing_set_to(False):
            for name, fields in WITH_BACKLOG.items():
                for _ in range(0, BACKLOG, MAX_BATCH):
                    store.send(name, _messages(fields, MAX_BATCH))
        for batch in MESSAGES:
            figures += _figures(store, WITHOUT_BACKLOG, batch) + _figures(store, WITH_BACKLOG, batch)
        figures.append(_packing(store))
    return [Result("feature", "plain", figures)]


def _packing(store: Store) -> Figure:
    def measure(packed: bool) -> float:
        with _packing_set_to(packed):
            return _pass(store, "packed" if packed else "unpacked", dict, 100)

    pairs = [(measure(True), measure(False)) for _ in range(ROUNDS + 1)][1:]
    return compare("plain and packed, in batches of 100", pairs, us, ratio=ours_to_other)


@contextmanager
def _packing_set_to(packed: bool) -> Iterator[None]:
    """Turn the packing of plain messages on or off for the block. Only this benchmark needs it: it is no setting."""
    shortest = sqlite_column_batches.SHORTEST
    sqlite_column_batches.SHORTEST = shortest if packed else MAX_BATCH + 1
    try:
        yield
    finally:
        sqlite_column_batches.SHORTEST = shortest


def _figures(store: Store, kinds: Kinds, batch: int) -> list[Figure]:
    _round(store, kinds, batch)
    rounds = [_round(store, kinds, batch) for _ in range(ROUNDS)]
    plain, *others = kinds
    how = f"in batches of {batch}" if batch > 1 else "one by one"
    return [
        compare(f"{name}, {how}", [(r[name], r[plain]) for r in rounds], us, ratio=ours_to_other, at_most=MOST)
        for name in others
    ]


def _round(store: Store, kinds: Kinds, batch: int) -> dict[str, float]:
    """Return the seconds per message, by kind."""
    with _packing_set_to(False):
        return {name: _pass(store, name, fields, batch) for name, fields in kinds.items()}


def _pass(store: Store, queue: str, fields: Callable[[], dict[str, object]], batch: int) -> float:
    """Send, receive and ack one round's messages; return the seconds per message."""
    recipient = str(fields().get("recipient", ""))
    start = time.perf_counter()
    for _ in range(0, MESSAGES[batch], batch):
        store.send(queue, _messages(fields, batch))
    left = MESSAGES[batch]
    while left:
        if time.perf_counter() - start > TIMEOUT:
            raise RuntimeError(f"{left} messages of queue {queue} did not arrive")
        leased = store.receive(Receive((queue,), batch, 60.0, recipient))
        if leased:  # else a delay has not ended
            store.ack([str(message.receipt) for message in leased])
            left -= len(leased)
    return (time.perf_counter() - start) / MESSAGES[batch]


def _messages(fields: Callable[[], dict[str, object]], count: int) -> list[NewMessage]:
    return [NewMessage.from_document({"text": "x" * 60, **fields()}) for _ in range(count)]
