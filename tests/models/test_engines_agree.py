"""Test that all engines give the same statuses, headers and bodies to the same requests."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from handler import make_app
from settings import Settings
from storage.postgres import upkeep as postgres_upkeep
from storage.sqlite import upkeep as sqlite_upkeep
from storage.store import Engine
from tests.support.engines import ENGINES, FakeClock
from tests.support.wsgi import Client, Reply

RECEIPT = re.compile(rb"([A-Za-z0-9._-]+~[1-9][0-9]*(?:-[0-9]+)?~)([0-9a-f]+)")
AGE = re.compile(rb'"oldest_age": [0-9.]+, ')
UNKNOWN_RECEIPT = "q~1~1"
pytestmark = pytest.mark.postgres


class Ask(NamedTuple):
    """A request. {0}, {1} … in its target or body are the receipts of earlier answers, in order."""

    method: str
    target: str
    body: object = None  # a document, or literal text
    headers: Mapping[str, str] = MappingProxyType({})
    later: float = 0.0  # seconds after the request before


def ask(method: str, target: str, body: object = None, /, later: float = 0.0, **headers: str) -> Ask:
    return Ask(method, target, body, headers, later)


class Session:
    """Send requests to one engine, and replace the random part of each receipt in answers by a number."""

    def __init__(self, store: Engine, clock: FakeClock) -> None:
        self._store = store
        self._client = Client(make_app(Settings(), store))
        self._clock = clock
        self.receipts: list[str] = []
        self._numbers: dict[bytes, int] = {}

    def answer(self, asked: Ask, bring_up_to_date: bool = False) -> Reply:
        """Send the request. With `bring_up_to_date`, first do the upkeep whose time is up to the engine."""
        self._clock.advance(asked.later)
        if bring_up_to_date:
            self._store.queues()
        text = asked.body if isinstance(asked.body, str) else json.dumps(asked.body)
        body = b"" if asked.body is None else self._filled(text).encode()
        headers = {"Content_Type": "application/json", **asked.headers} if body else asked.headers
        status, fields, content = self._client.call(asked.method, self._filled(asked.target), body, **headers)
        if asked.method == "PUT":  # the reply has no messages, and an engine may apply a new retention at once
            fields, content = fields | {"content-length": ""}, AGE.sub(b"", content)
        for found in RECEIPT.finditer(content):
            if found[0].decode() not in self.receipts and found[0].decode() != UNKNOWN_RECEIPT:
                self.receipts.append(found[0].decode())
        fields = {name: value for name, value in fields.items() if name != "content-length" or b"~" not in content}
        return Reply(status, fields, RECEIPT.sub(self._numbered, content))

    def _filled(self, text: str) -> str:
        def receipt(found: re.Match[str]) -> str:
            number = int(found[1])
            return self.receipts[number] if number < len(self.receipts) else UNKNOWN_RECEIPT

        return re.sub(r"\{(\d+)\}", receipt, text)

    def _numbered(self, found: re.Match[bytes]) -> bytes:
        return found[1] + b"%d" % self._numbers.setdefault(found[0], len(self._numbers))


@pytest.fixture
def sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Session]]:
    """Return a session with each engine, without upkeep, whose timing would change the order of deaths."""
    for watch in (sqlite_upkeep, postgres_upkeep):
        monkeypatch.setattr(watch, "UPKEEP_EVERY", 3_600.0)
    clocks = [FakeClock() for _ in ENGINES]
    stores = [open_(tmp_path, clock) for open_, clock in zip(ENGINES.values(), clocks, strict=True)]
    yield [Session(store, clock) for store, clock in zip(stores, clocks, strict=True)]
    for store in stores:
        store.close()


def answers(sessions: Sequence[Session], corpus: Sequence[Ask], bring_up_to_date: bool = False) -> list[Reply]:
    """Return the answer of all engines, which must be the same."""
    common = []
    for number, asked in enumerate(corpus):
        first, *others = [session.answer(asked, bring_up_to_date) for session in sessions]
        for other in others:
            assert (number, asked, other) == (number, asked, first)
        common.append(first)
    return common


ODD = '\0 a\x7f\u0085\u2028é\U0001f600\ud7ff\ue000\ufffe\\u0000"'
FULL = {"key": "k\0", "priority": 9, "recipient": "r\0é", "attributes": {"a\0": ODD, "n": 1.50, "t": None, "b": True},
        "delay": 0.5, "ttl": 1e2, "dedup_id": "d\0"}  # fmt: skip

WRITES = [
    ask("POST", "/messages", {"text": ODD}),
    ask("POST", "/messages", {"text": "", **FULL}),
    ask("POST", "/messages", {"text": "again", **FULL}),
    ask("POST", "/messages", [{"text": str(number), "priority": number % 3} for number in range(12)]),
    ask("POST", "/messages", [{"text": "same", "dedup_id": "x"}] * 3 + [{"text": "no id"}]),
    ask("POST", "/queues/q/messages", '{"text": "1"}\n{"text": "2"}\n', Content_Type="application/x-ndjson"),
    ask("POST", "/queues/q/messages", ODD, Content_Type="text/plain"),
    ask("POST", "/messages", {"text": "once"}, Idempotency_Key="w"),
    ask("POST", "/messages", {"text": "once"}, Idempotency_Key="w"),
    ask("POST", "/messages", {"text": "twice"}, Idempotency_Key="w"),
    ask("POST", "/messages", [{"text": "a"}, {"text": 1}]),
    ask("POST", "/messages", []),
    ask("POST", "/messages", {"text": "x", "nope": 1}),
    ask("GET", "/queues"),
    ask("GET", "/queues/default/peek?limit=1000"),
    ask("GET", "/queues/default/peek?limit=3&after=5", later=1.0),
    ask("GET", "/queues/default/peek?state=delayed"),
    ask("GET", "/queues/default/peek?text=1&limit=2"),
    ask("GET", "/queues/default/peek?text=1&before=1000&state=ready"),
    ask("GET", "/queues/nothing/peek"),
]
READS = [
    ask("GET", "/messages"),
    ask("GET", "/messages?lease=10"),
    ask("GET", "/messages?limit=5&lease=default", Accept="application/x-ndjson"),
    ask("GET", "/messages?limit=3", Idempotency_Key="r"),
    ask("GET", "/messages?limit=3", Idempotency_Key="r"),
    ask("GET", "/messages?limit=2", Idempotency_Key="r"),
    ask("GET", "/messages?limit=2&lease=5", Idempotency_Key="l"),
    ask("GET", "/messages?limit=2&lease=5", Idempotency_Key="l"),
    ask("GET", "/messages?recipient=r%00%C3%A9&limit=9"),
    ask("GET", "/messages?queue=none&queue=q&queue=default&limit=4&lease=7"),
    ask("GET", "/messages?limit=1000"),
    ask("GET", "/messages"),
    ask("HEAD", "/messages"),
    ask("OPTIONS", "/messages"),
    ask("GET", "/messages?limit=0"),
    ask("GET", "/queues/none/messages"),
]
SETTLING = [
    ask("POST", "/messages", [{"text": str(number)} for number in range(9)]),
    ask("GET", "/messages?limit=9&lease=10"),
    ask("DELETE", "/messages/{0}"),
    ask("DELETE", "/messages/{0}"),
    ask("DELETE", "/queues/other/messages/{1}"),
    ask("DELETE", "/messages/nonsense"),
    ask("PATCH", "/messages/{1}", {"lease": 60}),
    ask("PATCH", "/messages/{2}", {"lease": 0}),
    ask("PATCH", "/messages/{3}", {"lease": 0, "delay": 5}),
    ask("PATCH", "/messages/{4}", {"dead": True, "reason": ODD}),
    ask("PATCH", "/messages/{4}", {"lease": 1}),
    ask("POST", "/messages/ack", {"receipts": ["{5}", "{5}", "{0}", "x", "{6}"]}),
    ask("GET", "/messages?lease=10&limit=9", later=11.0),
    ask("PATCH", "/messages/{7}", {"lease": 1}),
    ask("POST", "/messages/ack", {"receipts": ["{2}", "{7}", "{8}", "{9}"]}),
    ask("GET", "/queues/default"),
    ask("GET", "/queues/default/peek?state=dead"),
    ask("GET", "/queues/default.dead/peek"),
    ask("GET", "/queues/default.dead/messages?lease=5"),
    ask("POST", "/queues/default/redrive"),
    ask("POST", "/queues/default/redrive", {"limit": 5}, later=6.0),
    ask("GET", "/queues/default/peek"),
    ask("POST", "/queues/none/redrive"),
    ask("GET", "/queues"),
]
TRANSACTIONS = [
    ask("POST", "/queues/in/messages", [{"text": str(number)} for number in range(6)]),
    ask("GET", "/queues/in/messages?limit=3&lease=30"),
    ask("POST", "/transactions", {"ack": ["{0}"], "send": [{"queue": "z", "text": "1"}, {"queue": "a", "text": "2"},
                                                           {"queue": "z", "text": "3", "key": "k"}]}),
    ask("POST", "/transactions", {"ack": ["{1}", "{0}"], "send": [{"queue": "z", "text": "never"}]}),
    ask("POST", "/transactions", {"ack": ["{1}"], "receive": {"queue": "in", "limit": 2, "lease": 9}},
        Idempotency_Key="t"),
    ask("POST", "/transactions", {"ack": ["{1}"], "receive": {"queue": "in", "limit": 2, "lease": 9}},
        Idempotency_Key="t"),
    ask("POST", "/transactions", {"ack": ["{2}"]}, Idempotency_Key="t"),
    ask("POST", "/transactions", {"send": [{"queue": "bad name", "text": ""}]}),
    ask("GET", "/queues"),
    ask("GET", "/queues/z/peek"),
]  # fmt: skip
TYPE = "application/vnd.queue-service.runs+json"
RUNS = [
    ask("POST", "/queues/q/messages",
        {"texts": [f"{n} {ODD}" for n in range(20)], "attributes": {"n": list(range(20))}}, Content_Type=TYPE),
    ask("POST", "/queues/q/messages", {"texts": ["alone"]}, Content_Type=TYPE),
    ask("POST", "/queues/q/messages", [{"text": "urgent", "priority": 1}, {"text": "x", "attributes": {}}]),
    ask("POST", "/queues/q/messages", {"texts": ["a", 1]}, Content_Type=TYPE),
    ask("GET", "/queues/q/messages?limit=16&lease=30", Accept=TYPE),
    ask("GET", "/queues/q/messages?limit=9&lease=30", Accept=TYPE),
    ask("POST", "/messages/ack", {"receipts": ["{1}"]}),
    ask("POST", "/messages/ack", {"receipts": ["{1}", "{2}", "q~1-20~1", "q~1-99999~1"]}),
    ask("DELETE", "/messages/{3}"),
    ask("GET", "/queues/q/messages?limit=9&lease=30", Accept=TYPE, later=31.0),
    ask("POST", "/transactions", {"ack": ["{4}", "{3}"], "receive": {"queue": "q"}}, Accept=TYPE),
    ask("GET", "/queues"),
]  # fmt: skip
BY_ID = [
    ask("POST", "/queues/q/messages", [{"text": str(number), "key": "k"} for number in range(3)]),
    ask("POST", "/queues/q/messages", [{"text": "later", "delay": 60}, {"text": "other"}]),
    ask("GET", "/queues/q/messages/4"),
    ask("PATCH", "/queues/q/messages/4", {"delay": 3600}),
    ask("PATCH", "/queues/q/messages/5", {"delay": 5.5}),
    ask("GET", "/queues/q/messages?lease=10"),
    ask("PATCH", "/queues/q/messages/1", {"delay": 5}),
    ask("DELETE", "/queues/q/messages/1"),
    ask("PATCH", "/queues/q/messages/2", {"delay": 20}),
    ask("PATCH", "/queues/q/messages/4", {"delay": 0}),
    ask("DELETE", "/messages/{0}"),
    ask("GET", "/queues/q/peek"),
    ask("PATCH", "/queues/q/messages/3", {"dead": True}),
    ask("PATCH", "/queues/q/messages/5", {"dead": True, "reason": ODD}),
    ask("DELETE", "/queues/q/messages/2", Idempotency_Key="d"),
    ask("DELETE", "/queues/q/messages/2", Idempotency_Key="d"),
    ask("DELETE", "/queues/q/messages/2"),
    ask("GET", "/queues/q/messages/2"),
    ask("GET", "/queues/none/messages/2"),
    ask("GET", "/queues/q/messages/0"),
    ask("GET", "/queues/q.dead/messages/6"),
    ask("PATCH", "/queues/q/messages/4", {"delay": 1, "dead": True}),
    ask("GET", "/queues"),
]
LEASES = [
    ask("PUT", "/queues/q", {"delay": 2}),
    ask("POST", "/queues/q/messages", [{"text": str(number)} for number in range(4)]),
    ask("POST", "/queues/q/messages", [{"text": "for r", "recipient": "r", "delay": 0}, {"text": "x", "delay": 0}]),
    ask("GET", "/queues/q/messages?recipients=any&limit=9&lease=5"),
    ask("GET", "/queues/q/messages?recipients=any&recipient=r"),
    ask("GET", "/queues/q/messages?limit=4&lease=5", later=2.0),
    ask("PATCH", "/messages/{2}", {"lease": 0, "counted": False}),
    ask("PATCH", "/messages/{2}", {"lease": 5}),
    ask("PATCH", "/messages/{3}", {"lease": 0, "counted": False, "delay": 9}),
    ask("PATCH", "/messages/{3}", {"lease": 5, "counted": False}),
    ask("POST", "/messages/extend", {"receipts": ["{0}", "{1}", "{2}", "x", "q~99~1", "{0}"], "lease": 60}),
    ask("POST", "/queues/other/messages/extend", {"receipts": ["{0}"], "lease": 60}),
    ask("POST", "/messages/extend", {"receipts": [], "lease": 60}),
    ask("POST", "/messages/extend", {"receipts": ["{0}"], "lease": 0}),
    ask("GET", "/queues/q/peek", later=3.5),
    ask("POST", "/messages/extend", {"receipts": ["{4}"], "lease": 60}),
    ask("DELETE", "/messages/{2}"),
    ask("GET", "/queues/q"),
]
STORIES = [
    ask("PUT", "/queues/q", {"dead_letter_queue": "d1", "max_receives": 1}),
    ask("PUT", "/queues/d1", {"dead_letter_queue": "d2"}),
    ask("PUT", "/queues/d2", {"dead_letter_queue": "q"}),
    ask("PUT", "/queues/d1", {"dead_letter_queue": "d1"}),
    ask("POST", "/queues/q/messages", [{"text": "a", "dedup_id": "a"}, {"text": "b", "dedup_id": "a"}, {"text": "c"}]),
    ask("POST", "/queues/q/messages", {"text": "d", "dedup_id": "a"}),
    ask("GET", "/queues/q/messages?limit=2&lease=5"),
    ask("PATCH", "/messages/{0}", {"dead": True, "reason": "bad"}),
    ask("GET", "/queues/d1/messages?limit=5&lease=5", later=6.0),
    ask("PATCH", "/messages/{2}", {"dead": True, "reason": "worse"}),
    ask("GET", "/queues/d2/peek"),
    ask("GET", "/queues/d2/peek?reason=worse"),
    ask("GET", "/queues/d1/peek?state=dead&reason=worse&limit=1"),
    ask("GET", "/queues/d2/reasons"),
    ask("GET", "/queues/d1/reasons"),
    ask("GET", "/queues/none/reasons"),
    ask("POST", "/queues/d2/purge", {"reason": "bad"}),
    ask("POST", "/queues/d2/redrive", {"reason": "bad"}),
    ask("POST", "/queues/d2/redrive", {"ids": ["1", "999"]}),
    ask("POST", "/queues/d2/redrive", {"reason": "worse", "limit": 5}, Idempotency_Key="r"),
    ask("POST", "/queues/d2/redrive", {"reason": "worse", "limit": 5}, Idempotency_Key="r"),
    ask("GET", "/queues/d1/peek"),
    ask("POST", "/queues/q/redrive", later=6.0),
    ask("GET", "/queues/q/peek?before=1000&limit=2"),
    ask("POST", "/queues/q/purge", Idempotency_Key="p"),
    ask("POST", "/queues/q/messages", [{"text": "new", "dedup_id": "a"}, {"text": "k", "key": "k"}]),
    ask("POST", "/queues/q/purge", Idempotency_Key="p"),
    ask("GET", "/queues/q/peek?key=k"),
    ask("GET", "/queues?prefix=d&after=d1&limit=1"),
    ask("GET", "/queues?limit=2"),
    ask("DELETE", "/queues/q", Idempotency_Key="x"),
    ask("DELETE", "/queues/q", Idempotency_Key="x"),
]
QUEUES = [
    ask("GET", "/queues/q"),
    ask("PUT", "/queues/q", {"max_messages": 3, "max_bytes": 30, "lease": 2.50, "retention": 1e1, "max_receives": 1}),
    ask("PUT", "/queues/q", {"lease": 3}, If_Match='"1"'),
    ask("PUT", "/queues/q", {"lease": 3}, If_Match='"2"'),
    ask("PUT", "/queues/new", {}, If_Match='"1"'),
    ask("PUT", "/queues/q", {"lease": "x"}),
    ask("POST", "/queues/q/messages", [{"text": str(number)} for number in range(4)]),
    ask("POST", "/queues/q/messages", {"text": "x" * 31}),
    ask("POST", "/queues/q/messages", [{"text": str(number)} for number in range(3)]),
    ask("POST", "/queues/q/messages", {"text": ""}),
    ask("GET", "/queues/q/messages?lease=default"),
    ask("GET", "/queues/q", later=3.5),
    ask("GET", "/queues/q.dead/peek"),
    ask("PUT", "/queues/q", {"retention": 20, "dead_letter_expired": True, "dead_letter_queue": "morgue"}),
    ask("GET", "/queues/q", later=8.0),
    ask("GET", "/queues", later=12.0),
    ask("GET", "/queues/q/peek?state=dead"),
    ask("PUT", "/queues/morgue", {"paused": True}),
    ask("GET", "/queues/morgue/messages"),
    ask("POST", "/queues/later/messages", {"text": "x", "delay": 5}),
    ask("PUT", "/queues/later", {"delay": 1, "expires": 60}, later=6.0),
    ask("POST", "/queues/morgue/purge"),
    ask("POST", "/queues/none/purge"),
    ask("DELETE", "/queues/morgue"),
    ask("DELETE", "/queues/morgue"),
    ask("GET", "/queues/q"),
    ask("GET", "/ready"),
    ask("GET", "/nowhere"),
]


@pytest.mark.parametrize(
    "corpus", [WRITES, WRITES + READS, SETTLING, TRANSACTIONS, RUNS, BY_ID, LEASES, STORIES, QUEUES]
)
def test_the_engines_give_the_same_answers(corpus: list[Ask], sessions: list[Session]) -> None:
    replies = answers(sessions, corpus)
    assert {200} < {reply.status for reply in replies}
    assert not any(reply.status >= 500 for reply in replies)


@pytest.mark.parametrize("seed", range(6))
def test_the_engines_give_the_same_answers_to_generated_requests(seed: int, sessions: list[Session]) -> None:
    chance = random.Random(seed)
    replies = [reply for _ in range(120) for reply in answers(sessions, [_any(chance, sessions[0])], True)]
    assert len({reply.status for reply in replies}) >= 4


def _any(chance: random.Random, session: Session) -> Ask:
    queue = chance.choice("abc")
    # Most of the last receipts are valid.
    receipt = f"{{{max(0, len(session.receipts) - chance.randint(1, 8))}}}"
    number = chance.randint(1, 60)
    both = [receipt, f"{{{len(session.receipts) - 1}}}"]

    def message() -> dict[str, Any]:
        fields = {"key": chance.choice("kl"), "priority": chance.randint(0, 9), "delay": chance.randint(0, 5),
                  "ttl": chance.randint(1, 20), "dedup_id": chance.choice("xyz"), "recipient": "r",
                  "attributes": {"a": ODD}}  # fmt: skip
        some = chance.sample(sorted(fields), chance.choice([0, 0, 1, 2]))
        return {"text": str(chance.random()), **{name: fields[name] for name in some}}

    def few() -> int:
        return chance.randint(1, 4)

    asks: list[Callable[[], Ask]] = [
        *[lambda: ask("POST", f"/queues/{queue}/messages", [message() for _ in range(few())])] * 5,
        *[lambda: ask("GET", f"/queues/{queue}/messages?limit={few()}&lease={chance.randint(1, 20)}")] * 6,
        lambda: ask("GET", f"/queues/{queue}/messages?recipient=r&limit=2"),
        lambda: ask("GET", f"/messages?queue={queue}&queue=b&limit=3&lease=4"),
        *[lambda: ask("DELETE", f"/messages/{receipt}")] * 2,
        *[lambda: ask("PATCH", f"/messages/{receipt}", {"lease": chance.randint(0, 20)})] * 2,
        lambda: ask("PATCH", f"/messages/{receipt}", {"dead": True}),
        lambda: ask("PATCH", f"/messages/{receipt}", {"lease": 0, "delay": few(), "counted": chance.random() < 0.5}),
        lambda: ask("POST", "/messages/extend", {"receipts": both, "lease": 9}),
        lambda: ask("GET", f"/queues/{queue}/messages?recipients=any&limit={few()}&lease=5"),
        lambda: ask("GET", f"/queues/{queue}/messages/{number}"),
        lambda: ask("DELETE", f"/queues/{queue}/messages/{number}"),
        lambda: ask("PATCH", f"/queues/{queue}/messages/{number}", chance.choice([{"delay": few()}, {"dead": True}])),
        lambda: ask("POST", f"/queues/{queue}.dead/redrive", {"reason": chance.choice(["expired", "rejected"])}),
        lambda: ask("GET", f"/queues/{queue}/peek?before=1000&key=k"),
        lambda: ask("POST", "/transactions", {"ack": [receipt], "send": [{"queue": queue, **message()}],
                                              "receive": {"queue": "a", "limit": 2, "lease": 5}}),
        lambda: ask("PUT", f"/queues/{queue}", {"max_receives": chance.randint(0, 3),
                                                "retention": chance.choice([None, 30]),
                                                "delay": chance.choice([None, None, 2]),
                                                "max_messages": chance.choice([None, 12]),
                                                "dead_letter_expired": chance.choice([True, False])}),
        lambda: ask("POST", f"/queues/{queue}/redrive", {"limit": chance.randint(1, 5)}),
        lambda: ask("GET", f"/queues/{queue}/peek?limit=1000"),
        lambda: ask("GET", f"/queues/{queue}/peek?state=dead"),
        lambda: ask("GET", "/queues"),
        lambda: ask("POST", f"/queues/{queue}/purge") if chance.random() < 0.2 else ask("GET", f"/queues/{queue}"),
    ]  # fmt: skip
    return chance.choice(asks)()._replace(later=chance.choice([0, 0, 0, 1, 3, 8]))
