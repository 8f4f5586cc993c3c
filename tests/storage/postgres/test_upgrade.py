"""Test the upgrade in place of a database that an older version wrote.

tests/storage/data/postgres-version-1.sql is a dump of a queue `q` (max_receives 3, retention 4,000,000 s) in which a
message of each kind is stored. Its first message of key "a" was rejected, leased from `q.dead`, released and leased
again. postgres-version-3.sql and postgres-version-4.sql are dumps of the same after its upgrade to these versions,
without the functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path

import psycopg
import pytest

from storage.errors import StaleReceipt
from storage.model import IdempotencyKey, Receive, State
from storage.postgres.maintenance import check
from storage.postgres.store import PostgresStore
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.postgres import ROLE, Postgres
from tests.support.shorthand import configure, in_threads, lease_one, new, peek, stats, texts

DATA = Path(__file__).parent.parent / "data"
A2 = "q~6~373a87e9c76035b5"  # receipts given out by the older version
PLAIN = "q~1~8a4a2ade3dfda27"

_numbers = count(1)


@pytest.fixture(params=[1, 3, 4])
def url(request: pytest.FixtureRequest, postgres: Postgres) -> str:
    name = f"older-{next(_numbers)}"
    url = postgres.create_database(name)
    at = ["-h", "127.0.0.1", "-p", str(postgres.port), "-U", ROLE, "-d", name]
    postgres.run(
        "psql", "-qX", "-v", "ON_ERROR_STOP=1", *at, "-c", (DATA / f"postgres-version-{request.param}.sql").read_text()
    )
    return url


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock shortly after the dump was made."""
    clock = FakeClock()
    clock.advance(1_795_915_600 - clock.now() / 1000)
    return clock


@pytest.fixture
def store(url: str, clock: FakeClock) -> Iterator[Store]:
    with closing(PostgresStore(url, clock=clock)) as store:
        yield store
    check(url)


def test_all_old_messages_are_kept(store: Store) -> None:
    assert peek(store) == ["plain", "second", "delayed", "short", "a2", "known", "once"]
    assert stats(store)[:5] == (4, 2, 1, 0, 1)
    assert (store.queue("q").settings.retention, store.queue("q.dead").settings.lease) == (4_000_000, 7)


def test_receipts_and_remembered_keys_stay_valid(store: Store, clock: FakeClock) -> None:
    assert store.extend(A2, 60) == clock.now() + 60_000
    store.settle(A2)
    assert store.send("q", [new("once")], IdempotencyKey("once", b"once")) == ([8], [])
    assert store.send("q", [new("again", dedup_id="d-1")]) == ([7], [0])
    (read,) = store.receive(Receive(("q",), lease=43_200.0), IdempotencyKey("read", b"read"))
    assert (read.text, read.receipt) == ("plain", PLAIN)


def test_a_dead_letter_keeps_its_history_and_can_be_redriven(store: Store) -> None:
    (read,) = store.receive(Receive(("q.dead",), lease=43_200.0), IdempotencyKey("dead", b"dead"))
    (seen,) = store.peek("q", state=State.DEAD)
    for dead in (read, seen):
        assert dead.fields is not None
        assert '"dead_letter_from": "q", "dead_letter_reason": "no é \\"quote\\" \\u0000 nul"' in dead.fields
    store.release(str(read.receipt), counted=False)
    assert store.redrive("q.dead", reason='no é "quote" \0 nul') == 1
    assert store.peek("q", after=seen.id)[-1].fields == '{"key": "a", "priority": 2}'


def test_messages_expire_by_their_own_ttl_and_by_the_retention_as_before(store: Store, clock: FakeClock) -> None:
    clock.advance(3_899_970)
    assert "short" in peek(store)
    clock.advance(60)
    assert "short" not in peek(store)
    configure(store, retention=4_100_000)
    clock.advance(100_000)
    assert "second" in peek(store)
    clock.advance(100_000)
    assert "second" not in peek(store)


def test_an_old_lease_has_no_holder_and_the_next_one_has(store: Store) -> None:
    assert [message.leased_by for message in store.peek("q", state=State.LEASED)] == [None, None]
    (message,) = store.receive(Receive(("q",), 1, 60.0, holder="shop"))
    assert store.message("q", message.id).leased_by == "shop"


def test_a_message_released_before_the_upgrade_can_be_leased_and_released(store: Store) -> None:
    held = lease_one(store)
    store.release(held.receipt)
    with pytest.raises(StaleReceipt):
        store.extend(held.receipt, 60)


SCHEMA = """
    SELECT 'column', table_name || '.' || column_name,
           concat_ws(' ', data_type, is_nullable, column_default, is_identity, collation_name)
      FROM information_schema.columns WHERE table_schema = 'queue_service'
     UNION ALL
    SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'queue_service'
     UNION ALL
    SELECT 'function', oid::regprocedure::text, pg_get_functiondef(oid) FROM pg_proc
     WHERE pronamespace = 'queue_service'::regnamespace
     UNION ALL
    SELECT 'storage', relname, array_to_string(reloptions, ' ') FROM pg_class
     WHERE relnamespace = 'queue_service'::regnamespace
     UNION ALL
    SELECT 'version', '', version::text FROM queue_service.version
"""


def test_an_upgraded_schema_is_that_of_a_new_database(store: Store, url: str, postgres: Postgres) -> None:
    fresh = postgres.create_database(f"new-{next(_numbers)}")
    PostgresStore(fresh).close()
    schemas = []
    for database in (url, fresh):
        with psycopg.connect(database) as connection:
            schemas.append(set(connection.execute(SCHEMA).fetchall()))
    assert schemas[0] == schemas[1]


def test_nodes_that_start_at_once_upgrade_the_database_once(url: str, clock: FakeClock) -> None:
    stores = in_threads([partial(PostgresStore, url, clock=clock)] * 4)
    opened = [store for store in stores if isinstance(store, PostgresStore)]
    found = [texts(store.peek("q")) for store in opened]
    for store in opened:
        store.close()
    assert len(found) == 4
    assert all(len(seen) == 7 for seen in found)


def test_a_node_of_the_older_version_cannot_call_incompatible_verbs(store: Store, url: str) -> None:
    """The upgrade removes verbs whose answers the older version would misread, or that would lose data."""
    with psycopg.connect(url, autocommit=True) as node:
        for call in OLDER_CALLS:
            statement = f"SELECT queue_service.{call}".encode()
            with pytest.raises(psycopg.errors.UndefinedFunction):
                node.execute(statement)
    assert len(peek(store)) == 7


OLDER_CALLS = [
    "send(1::bigint, 1::bigint, 'q'::text, '{}'::bytea[], NULL::json, NULL::text, NULL::bytea)",
    "receive(1::bigint, 1::bigint, '{q}'::text[], 1::int, ''::bytea, NULL::bigint, 1::bigint, NULL::text, NULL::bytea)",
    "extend(1::bigint, 'q'::text, 1::bigint, 1::bigint, 1::bigint)",
    "release(1::bigint, 1::bigint, 'q'::text, 1::bigint, 1::bigint, 0::bigint)",
    "reject(1::bigint, 1::bigint, 'q'::text, 1::bigint, 1::bigint, ''::text)",
    "configure('q'::text, 1::int, '{}'::jsonb)",
    "purge(1::bigint, 'q'::text, 1::bigint, 1::int, 1::bigint)",
    "redrive(1::bigint, 'q'::text, 1::int)",
    "catch_up(1::bigint, 1::bigint, 'q'::text, 1::int)",
]
