"""Test that PostgreSQL loses nothing acknowledged: cut connections, a restart, a failover to the standby.

The web nodes keep running. The short forms run in every test run; `-m torture` runs the long ones.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.figures import AddRow
from tests.support.live import LiveServer
from tests.support.load import Connection, Load
from tests.support.postgres import Postgres, url_of_both

LONG = [pytest.mark.slow, pytest.mark.torture]
DATABASE = "queue"


@pytest.fixture(scope="module")
def primary() -> Iterator[Postgres]:
    """Run a PostgreSQL with default durability and the service's database."""
    with Postgres() as server:
        server.create_database(DATABASE)
        yield server


@pytest.fixture(scope="module")
def node(primary: Postgres) -> Iterator[LiveServer]:
    with LiveServer({"QUEUE_DATABASE_URL": primary.url(DATABASE), "WEB_CONCURRENCY": "2"}) as server:
        yield server


@pytest.mark.parametrize("times", [2, pytest.param(30, marks=LONG)])
@pytest.mark.parametrize("fault", ["connections terminated", "server restarted at once"])
def test_nothing_acknowledged_is_lost_when_postgresql_fails_under_load(
    fault: str, times: int, primary: Postgres, node: LiveServer, queue: str, tmp_path: Path, add_row: AddRow
) -> None:
    def strike() -> None:
        if fault == "connections terminated":
            assert primary.terminate_connections(DATABASE) > 0
        else:
            primary.restart_at_once()

    with Load(node.port, tmp_path, queue) as load:
        load.write().write(batch=10, keyed=True).read().read(lease=2.0, batch=50)
        for _ in range(times):
            load.await_progress()
            time.sleep(random.uniform(0.0, 0.3))
            strike()
        load.await_progress()
        verdict = load.finish()
    add_row(fault=f"PostgreSQL: {fault}", times=times, **verdict.figures)
    assert verdict.faultless, verdict
    _assert_nothing_is_left(node, queue)


@pytest.mark.parametrize("failovers", [1, pytest.param(5, marks=LONG)])
def test_a_failover_to_the_standby_loses_nothing_and_needs_no_restart(
    failovers: int, tmp_path: Path, add_row: AddRow
) -> None:
    slowest = 0.0
    with Postgres() as primary, Postgres() as standby:
        primary.create_database(DATABASE)
        standby.follow(primary)
        url = url_of_both([primary, standby], DATABASE)
        with LiveServer({"QUEUE_DATABASE_URL": url, "WEB_CONCURRENCY": "2"}) as node, Load(node.port, tmp_path) as load:
            load.write(keyed=True).write(batch=10, keyed=True).read().read(lease=2.0, batch=50)
            for number in range(failovers):
                if number:
                    primary, standby = standby, primary
                    standby.follow(primary)
                load.await_progress()
                time.sleep(random.uniform(0.0, 0.3))
                primary.kill()
                standby.promote()
                promoted = time.monotonic()
                load.await_progress()
                slowest = max(slowest, time.monotonic() - promoted)
            verdict = load.finish()
            _assert_nothing_is_left(node, load.queue)
    fault = f"PostgreSQL: failover, all clients went on {slowest:.1f} s after the promotion"
    add_row(fault=fault, times=failovers, **verdict.figures)
    assert verdict.faultless, verdict
    assert (verdict.unknown, verdict.refused) == (0, 0), "with its key, every write is acknowledged in the end"


def _assert_nothing_is_left(node: LiveServer, queue: str) -> None:
    """Assert that no message is left, by the counts too."""
    connection = Connection(node.port)
    assert connection.open()
    stats = connection.ask("GET", f"/queues/{queue}").document["stats"]
    connection.close()
    assert {name: stats[name] for name in ("ready", "leased", "delayed", "blocked", "dead", "bytes")} == dict.fromkeys(
        ("ready", "leased", "delayed", "blocked", "dead", "bytes"), 0
    )
