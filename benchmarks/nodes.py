"""four nodes behind a balancer against one, on one PostgreSQL, all on this machine, by 32 keep-alive connections.

HAProxy is also in front of the single node, so that both have its cost. Each node is a gunicorn of one process. Writes
are single messages of 60 bytes; each read removes one.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.load import Load, request, run
from benchmarks.report import Figure, Result, compare, ours_to_other, per_second
from tests.support.live import LiveServer
from tests.support.postgres import Balancer, Postgres

NODES = 4
CONNECTIONS = 32
ROUNDS = 7
SECONDS = 2.0
WRITE = request("POST", "/messages", b'{"text": "%s"}' % (b"x" * 60))
READ = request("GET", "/messages")


def nodes() -> list[Result]:
    with ExitStack() as stack:
        environment = {
            "QUEUE_DATABASE_URL": stack.enter_context(Postgres()).create_database("queue"),
            "WEB_CONCURRENCY": "1",
            "QUEUE_THREADS": str(CONNECTIONS),
        }
        all_nodes = [stack.enter_context(LiveServer(environment)) for _ in range(NODES)]
        one, many = (stack.enter_context(Balancer(behind)).port for behind in (all_nodes[:1], all_nodes))
        rounds = [(_load(many), _load(one)) for _ in range(ROUNDS + 1)][1:]
    return [
        Result(
            f"{NODES} nodes",
            "one node",
            [_figure(what, place, rounds) for place, what in enumerate(("writes", "reads"))],
        )
    ]


def _load(port: int) -> tuple[Load, Load]:
    loads = run(port, WRITE, CONNECTIONS, SECONDS), run(port, READ, CONNECTIONS, SECONDS)
    if failed := sum(load.failed for load in loads):
        raise RuntimeError(f"{failed} requests failed")
    return loads


def _figure(what: str, place: int, rounds: list[tuple[tuple[Load, Load], tuple[Load, Load]]]) -> Figure:
    rates = [(many[place].rate, one[place].rate) for many, one in rounds]
    return compare(what, rates, per_second, ratio=ours_to_other)
