"""Test that numbers come back digit for digit, on every way through the service and on every engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

import handler
from settings import Settings
from storage.literals import decode, encode
from tests.support.engines import ENGINES, FakeClock
from tests.support.wsgi import Client, Reply
from web.native.request import NDJSON, RUNS

LITERALS = ["1.10", "1E5", "1e5", "1E+05", "-0", "-0.0", "0.10", "1.0", "12345678901234567890.12345678901234567890",
            "123456789012345678901234567890", "-1e-7", "0.1", "17", "2.5e-300", "9" * 400]  # fmt: skip
WRITTEN = re.compile(r'"n\d+": (-?[0-9.eE+-]+)')
BODY = f'{{"text": "x", "attributes": {{{", ".join(f"{chr(34)}n{i}{chr(34)}: {n}" for i, n in enumerate(LITERALS))}}}}}'


@pytest.fixture(params=ENGINES)
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    store = ENGINES[request.param](tmp_path, FakeClock())
    yield Client(handler.make_app(Settings(), store))
    store.close()


def numbers(reply: Reply) -> list[list[str]]:
    """Return the numbers of each message as written in the reply."""
    return [WRITTEN.findall(one) for one in reply.body.decode().split('"text"')[1:]]


def post(client: Client, body: str, kind: str = "application/json", queue: str = "default") -> Reply:
    return client.call("POST", f"/queues/{queue}/messages", body.encode(), Content_Type=kind)


def test_a_message_is_answered_read_leased_and_shown_with_its_numbers_as_written(client: Client) -> None:
    assert numbers(post(client, BODY)) == [LITERALS]
    assert numbers(client.get("/queues/default/peek")) == [LITERALS]
    assert numbers(client.get("/queues/default/messages/1")) == [LITERALS]
    leased = client.get("/messages?lease=60")
    assert numbers(leased) == [LITERALS]
    client.call("PATCH", f"/messages/{leased.json['receipt']}", b'{"lease": 0}')
    assert numbers(client.get("/messages", Idempotency_Key="k")) == [LITERALS]
    assert numbers(client.get("/messages", Idempotency_Key="k")) == [LITERALS]


@pytest.mark.parametrize("accept", ["*/*", NDJSON, RUNS])
def test_messages_of_a_batch_keep_their_numbers_beside_others(client: Client, accept: str) -> None:
    post(client, f'[{{"text": "a", "attributes": {{"n0": 1}}}}, {BODY}, {{"text": "b", "attributes": {{"n0": 2.50}}}}]')
    post(client, f"{BODY}\n{BODY}\n", NDJSON)
    reply = client.get("/messages?limit=9&lease=60", Accept=accept)
    assert numbers(reply) == [["1"], LITERALS, ["2.50"], LITERALS, LITERALS]


def test_a_run_keeps_its_numbers(client: Client) -> None:
    post(client, '{"texts": ["a", "b", "c"], "attributes": {"n0": [1, 1.10, -0], "n1": [1E5, 2, 3]}}', RUNS)
    expected = [["1", "1E5"], ["1.10", "2"], ["-0", "3"]]
    assert numbers(client.get("/queues/default/peek")) == expected
    assert numbers(client.get("/messages?limit=9&lease=60", Accept=RUNS)) == expected


def test_durations_and_priority_come_back_as_written(client: Client) -> None:
    body = '{"text": "x", "priority": -0, "delay": 0.00, "ttl": 1.50E2}'
    post(client, body)
    assert client.get("/messages").body.decode() == body.replace(" 0.00", " 0.00") + "\n"


def test_a_dead_letter_and_one_that_was_redriven_keep_their_numbers(client: Client) -> None:
    post(client, BODY)
    receipt = client.get("/messages?lease=60").json["receipt"]
    client.call("PATCH", f"/messages/{receipt}", b'{"dead": true, "reason": "1.10"}')
    assert numbers(client.get("/queues/default.dead/peek")) == [LITERALS]
    receipt = client.get("/queues/default.dead/messages?lease=60").json["receipt"]
    client.call("PATCH", f"/messages/{receipt}", b'{"dead": true}')  # it is dead-lettered again
    (dead,) = client.get("/queues/default.dead.dead/peek").json
    assert json.loads(dead["attributes"]["dead_letter_history"])[0]["dead_letter_reason"] == "1.10"
    assert numbers(client.get("/queues/default.dead.dead/peek")) == [LITERALS]
    for queue in ("default.dead", "default"):
        assert client.post(f"/queues/{queue}/redrive", {}).json == {"redriven": 1}
    assert numbers(client.get("/messages")) == [LITERALS]


def test_a_transaction_keeps_the_numbers_of_what_it_sends_and_receives(client: Client) -> None:
    client.call("POST", "/transactions", f'{{"send": [{BODY}]}}'.encode(), Content_Type="application/json")
    assert numbers(client.post("/transactions", {"receive": {}})) == [LITERALS]


@pytest.mark.parametrize("literal", ["1e400", "-1e999", "1e-400", "9" * 5000])
def test_a_number_beyond_the_range_of_readers_is_refused(client: Client, literal: str) -> None:
    assert post(client, f'{{"text": "x", "attributes": {{"n0": {literal}}}}}').json["code"] == "bad_request"


SCALAR = (
    strategies.none()
    | strategies.booleans()
    | strategies.text(max_size=5)
    | strategies.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?", fullmatch=True).map(decode)
)


@given(strategies.dictionaries(strategies.text(max_size=5), SCALAR))
@settings(suppress_health_check=list(HealthCheck), deadline=None)
def test_decoded_json_is_encoded_as_the_same_text(attributes: dict[str, object]) -> None:
    text = encode({"attributes": attributes, "delay": decode("1.50")})
    assert encode(decode(text)) == text
    assert json.loads(text)["attributes"] == attributes
