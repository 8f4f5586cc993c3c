"""Test tokens over the native routes: rights, the token file, and limits on guessing."""

from __future__ import annotations

import base64
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import handler
from clients import Forbidden, NotAllowed, QueueClient, TooManyFailures, Unauthenticated
from clients.errors import problem
from settings import Settings
from storage.errors import Unavailable
from storage.store import Engine, Store
from tests.support.live import LiveServer, await_true
from tests.support.wsgi import Client, Reply, a_store
from web.access import authentication, tokens
from web.access.authorization import AuthorizedStore
from web.access.tokens import BadTokens, Tokens
from web.native.application import Application
from web.observability.access_log import rule_of
from web.pages import openapi

SECRETS = {name: f"{name}-secret-0123456789" for name in ("producer", "consumer", "admin", "all", "scraper")}
TOKENS = f"""
# name:secret:rights:queues
producer:{SECRETS["producer"]}:send:jobs,logs.*
consumer:sha256={tokens.hash_of(SECRETS["consumer"]).hex()}:receive:jobs,job-?
admin:{SECRETS["admin"]}:admin:jobs*
all:{SECRETS["all"]}:send,receive,admin:*
scraper:{SECRETS["scraper"]}:metrics:*
"""
STRANGER = "203.0.113.7"


@pytest.fixture
def store() -> Iterator[Engine]:
    with a_store() as store:
        yield store


@pytest.fixture
def app(store: Engine) -> Application:
    return handler.make_app(Settings(tokens=TOKENS), store)


def bearer(app: Application, name: str) -> Client:
    """Return a client that sends the secret of this name with every request."""
    return Client(app, Authorization=f"Bearer {SECRETS[name]}")


def basic(name: str, secret: str) -> str:
    return f"Basic {base64.b64encode(f'{name}:{secret}'.encode()).decode()}"


def assert_forbidden(reply: Reply) -> None:
    assert (reply.status, reply.json["code"]) == (403, "forbidden")


def path_of(rule: str) -> str:
    """Return a path that matches the rule."""
    return re.sub("{.*?}", "jobs", rule.replace("{id}", "1"))


def leased(app: Application, queue: str = "jobs") -> str:
    """Send and lease a message; return its receipt."""
    client = bearer(app, "all")
    assert client.post(f"/queues/{queue}/messages", {"text": "x"}).status == 200
    return str(client.get(f"/queues/{queue}/messages?lease=60").json["receipt"])


def test_a_leased_message_shows_the_token_that_holds_it(app: Application) -> None:
    leased(app)
    assert bearer(app, "all").get("/queues/jobs/peek").json[0]["leased_by"] == "all"
    assert bearer(app, "all").get("/queues/jobs/messages/1").json["leased_by"] == "all"


# Every route.


def test_every_route_has_a_right_of_its_own_or_is_open_and_every_right_a_route() -> None:
    routes = {f"{route.method} {rule_of(route)}" for route in handler.make_app().bottle.routes}
    assert routes == authentication.NEEDS.keys()


def test_only_routes_without_message_data_are_open() -> None:
    assert {route for route, needs in authentication.NEEDS.items() if not needs} == {
        "GET /",
        "GET /docs",
        "GET /openapi.json",
        "GET /health",
        "GET /ready",
        "HEAD /messages",  # 405, with every token
        "HEAD /queues/{queue}/messages",
    }


def test_the_openapi_document_asks_for_a_token_where_the_service_does() -> None:
    documented = {
        f"{method.upper()} {path}": operation.get("security") != []
        for path, operations in openapi.document()["paths"].items()
        for method, operation in operations.items()
        if method not in ("parameters", "head")
    }
    asked = {
        re.sub(r"(/queues/.*)\{(id|receipt)\}", r"\1{receipt_or_id}", route): bool(needs)
        for route, needs in authentication.NEEDS.items()
    }
    assert documented == {route: needs for route, needs in asked.items() if not route.startswith("HEAD")}


@pytest.mark.parametrize("route", [route for route, needs in authentication.NEEDS.items() if needs])
def test_a_route_without_a_token_is_refused_with_a_challenge(app: Application, route: str) -> None:
    method, rule = route.split()
    reply = Client(app).call(method, path_of(rule))
    assert (reply.status, reply.json["code"]) == (401, "unauthenticated")
    assert reply.headers["www-authenticate"] == 'Bearer realm="queue_service"'


@pytest.mark.parametrize("route", [route for route, needs in authentication.NEEDS.items() if needs])
@pytest.mark.parametrize("right", tokens.RIGHTS)
def test_a_route_is_refused_to_every_token_without_its_right(store: Engine, route: str, right: str) -> None:
    app = handler.make_app(Settings(tokens=f"one:{SECRETS['all']}:{right}:*"), store)
    method, rule = route.split()
    reply = bearer(app, "all").call(method, path_of(rule))
    assert (reply.status == 403) == (right not in authentication.NEEDS[route]), reply


def test_a_route_without_a_right_is_refused_to_every_token(app: Application) -> None:
    app.bottle.get("/new", callback=lambda: "secret")
    assert_forbidden(bearer(app, "all").get("/new"))
    assert Client(app).get("/new").status == 401


@pytest.mark.parametrize("route", ["/health", "/ready"])
def test_health_needs_no_token(app: Application, route: str) -> None:
    assert Client(app).get(route).status == 200
    assert Client(app, Authorization="Bearer wrong").get(route).status == 200


def test_every_store_method_that_requests_call_is_guarded() -> None:
    verbs = {name for name in vars(Store) if not name.startswith("_")}
    assert {name for name in vars(AuthorizedStore) if not name.startswith("_")} == verbs


def test_a_request_without_authorization_cannot_use_the_store(store: Engine) -> None:
    granted = AuthorizedStore(store, None)
    store.configure("jobs", {})
    assert granted.queues() == []
    for verb in (granted.queue, granted.purge, granted.delete_queue, granted.redrive, granted.peek, granted.reasons):
        with pytest.raises(authentication.Forbidden):
            verb("jobs")


# Queues.


@pytest.mark.parametrize(
    ("name", "method", "target", "body", "status"),
    [
        ("producer", "POST", "/queues/jobs/messages", '{"text": "x"}', 200),
        ("producer", "POST", "/queues/logs.eu/messages", '{"text": "x"}', 200),
        ("producer", "POST", "/queues/logs/messages", '{"text": "x"}', 403),
        ("producer", "POST", "/messages", '{"text": "x"}', 403),
        ("producer", "POST", "/queues/jobs2/messages", '{"text": "x"}', 403),
        ("producer", "GET", "/queues/jobs", "", 200),
        ("producer", "GET", "/queues/other", "", 403),
        ("consumer", "GET", "/queues/jobs/messages", "", 204),
        ("consumer", "GET", "/queues/job-1/messages", "", 204),
        ("consumer", "GET", "/queues/job-12/messages", "", 403),
        ("consumer", "GET", "/messages", "", 403),
        ("consumer", "GET", "/messages?queue=jobs&queue=job-1", "", 204),
        ("consumer", "GET", "/messages?queue=jobs&queue=other", "", 403),
        ("consumer", "GET", "/queues/jobs/peek", "", 200),
        ("consumer", "GET", "/queues/jobs/reasons", "", 200),
        ("admin", "GET", "/queues/other/reasons", "", 403),
        ("consumer", "GET", "/queues/other/peek", "", 403),
        ("admin", "PUT", "/queues/jobs", "{}", 200),
        ("admin", "PUT", "/queues/other", "{}", 403),
        ("admin", "PUT", "/queues/jobs", '{"dead_letter_queue": "jobs.dead"}', 200),
        ("admin", "PUT", "/queues/jobs", '{"dead_letter_queue": "other"}', 403),
        ("admin", "DELETE", "/queues/jobs", "", 204),
        ("admin", "DELETE", "/queues/other", "", 403),
        ("admin", "POST", "/queues/jobs/purge", "", 200),
        ("admin", "POST", "/queues/other/purge", "", 403),
        ("admin", "POST", "/queues/jobs/redrive", "", 200),
        ("admin", "POST", "/queues/other/redrive", "", 403),
        ("admin", "GET", "/queues/jobs/peek", "", 200),
        ("admin", "GET", "/queues/jobs/messages/1", "", 404),
        ("consumer", "GET", "/queues/jobs/messages/1", "", 404),
        ("admin", "GET", "/queues/other/messages/1", "", 403),
        ("admin", "DELETE", "/queues/jobs/messages/1", "", 404),
        ("admin", "DELETE", "/queues/other/messages/1", "", 403),
        ("admin", "PATCH", "/queues/jobs/messages/1", '{"delay": 1}', 404),
        ("admin", "PATCH", "/queues/other/messages/1", '{"delay": 1}', 403),
        ("admin", "PATCH", "/queues/other/messages/1", '{"dead": true}', 403),
        ("consumer", "GET", "/queues/other/messages?recipients=any", "", 403),
    ],
)
def test_a_right_holds_for_the_queues_its_token_names(
    app: Application, name: str, method: str, target: str, body: str, status: int
) -> None:
    for queue in ("jobs", "other"):
        app.unrestricted_store.configure(queue, {})
    reply = bearer(app, name).call(method, target, body.encode())
    assert reply.status == status
    if status == 403:
        assert reply.json["queue"] not in ("jobs", "job-1", "logs.eu")


def test_a_list_of_queues_has_only_those_the_token_names(app: Application) -> None:
    for queue in ("jobs", "other", "logs.eu", "jobs.dead"):
        app.unrestricted_store.configure(queue, {})
    queues = {
        name: [q["queue"] for q in bearer(app, name).get("/queues").json["queues"]] for name in ("producer", "admin")
    }
    assert queues == {"producer": ["jobs", "logs.eu"], "admin": ["jobs", "jobs.dead"]}
    assert bearer(app, "producer").get("/queues?prefix=lo").json["queues"][0]["queue"] == "logs.eu"
    assert bearer(app, "admin").get("/queues?prefix=other").json == {"queues": []}
    first = bearer(app, "admin").get("/queues?limit=1").json
    assert (first["queues"][0]["queue"], first["next"]) == ("jobs", "jobs")
    assert [q["queue"] for q in bearer(app, "admin").get("/queues?limit=5&after=jobs").json["queues"]] == ["jobs.dead"]


def test_a_list_of_queues_skips_pages_that_a_token_does_not_cover(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.access.authorization.MAX_PAGE", 2)
    for queue in ("job-1", "job-22", "job-3", "job-44", "job-55", "job-6", "jobs"):
        app.unrestricted_store.configure(queue, {})
    page = bearer(app, "consumer").get("/queues").json
    assert [one["queue"] for one in page["queues"]] == ["job-1", "job-3", "job-6", "jobs"]


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("DELETE", "/messages/{other}", ""),
        ("DELETE", "/queues/jobs/messages/{other}", ""),
        ("DELETE", "/queues/other/messages/{other}", ""),
        ("PATCH", "/messages/{other}", '{"lease": 60}'),
        ("PATCH", "/messages/{other}", '{"lease": 0}'),
        ("PATCH", "/messages/{other}", '{"dead": true}'),
        ("POST", "/messages/ack", '{"receipts": ["{jobs}", "{other}"]}'),
        ("POST", "/queues/jobs/messages/ack", '{"receipts": ["{other}"]}'),
        ("POST", "/messages/ack", '{"receipts": ["{jobs}", "other~1-9~1"]}'),
        ("POST", "/messages/extend", '{"receipts": ["{jobs}", "{other}"], "lease": 60}'),
        ("POST", "/queues/jobs/messages/extend", '{"receipts": ["{other}"], "lease": 60}'),
        ("POST", "/messages/extend", '{"receipts": ["{jobs}", "other~1-9~1"], "lease": 60}'),
        ("PATCH", "/messages/{other}", '{"lease": 0, "counted": false}'),
        ("POST", "/transactions", '{"ack": ["{jobs}", "other~1-9~1"]}'),
        ("POST", "/transactions", '{"ack": ["{jobs}", "{other}"]}'),
        ("POST", "/transactions", '{"ack": ["{jobs}"], "receive": {"queue": "other"}}'),
        ("POST", "/transactions", '{"ack": ["{jobs}"], "send": [{"text": "x", "queue": "jobs"}]}'),
    ],
)
def test_a_receipt_of_a_queue_that_the_token_does_not_name_does_nothing(
    app: Application, method: str, target: str, body: str
) -> None:
    receipts = {queue: leased(app, queue) for queue in ("jobs", "other")}
    for queue, receipt in receipts.items():
        target, body = target.replace(f"{{{queue}}}", receipt), body.replace(f"{{{queue}}}", receipt)
    assert_forbidden(bearer(app, "consumer").call(method, target, body.encode()))
    assert bearer(app, "all").post("/messages/ack", {"receipts": list(receipts.values())}).json["acked"] == 2


def test_a_transaction_needs_the_right_of_each_of_its_parts(app: Application) -> None:
    receipt = leased(app)
    step = {"ack": [receipt], "send": [{"queue": "jobs", "text": "y"}], "receive": {"queue": "jobs", "lease": 60}}
    for name in ("producer", "consumer"):
        assert_forbidden(bearer(app, name).post("/transactions", step))
    assert bearer(app, "producer").post("/transactions", {"send": step["send"]}).status == 200
    assert bearer(app, "consumer").post("/transactions", {"ack": [receipt]}).status == 200


def test_each_token_has_idempotency_keys_of_its_own(app: Application) -> None:
    step = {"send": [{"queue": "jobs", "text": "x"}]}
    first, other = (bearer(app, name).post("/transactions", step, Idempotency_Key="1") for name in ("producer", "all"))
    assert first.json["ids"] != other.json["ids"]
    again = bearer(app, "producer").post("/transactions", step, Idempotency_Key="1")
    assert again.json == first.json
    assert bearer(app, "all").post("/messages", {"text": "y"}, Idempotency_Key="1").status == 200


def test_an_invalid_receipt_gets_the_same_error_as_without_tokens(app: Application) -> None:
    client = bearer(app, "consumer")
    assert client.call("DELETE", "/messages/nonsense").json["code"] == "message_not_found"
    assert client.post("/messages/ack", {"receipts": ["nonsense"]}).json["missing"] == ["nonsense"]


# Credentials.


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {SECRETS['all']}", 200),
        (f"bearer  {SECRETS['all']}", 200),
        (basic("all", SECRETS["all"]), 200),
        (basic("consumer", SECRETS["consumer"]), 200),
        (basic("admin", SECRETS["all"]), 401),
        (basic("", SECRETS["all"]), 401),
        (f"Bearer {SECRETS['all']}x", 401),
        (f"Bearer {SECRETS['all'][:-1]}", 401),
        (f"Bearer {tokens.hash_of(SECRETS['consumer']).hex()}", 401),
        (f"Bearer sha256={tokens.hash_of(SECRETS['consumer']).hex()}", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Basic", 401),
        ("Basic !", 401),
        ("Basic /w==", 401),
        ("Bearer \u00ff\u0100", 401),
        (f"Digest {SECRETS['all']}", 401),
        (SECRETS["all"], 401),
        ("", 401),
    ],
)
def test_a_secret_comes_as_bearer_or_with_its_name_as_basic(app: Application, header: str, status: int) -> None:
    reply = Client(app).get("/queues", Authorization=header)
    assert reply.status == status
    if status == 401:
        assert reply.headers["www-authenticate"] == 'Bearer realm="queue_service", error="invalid_token"'


def test_wrong_tokens_are_refused_for_a_while_and_a_valid_one_is_always_admitted(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, right = {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {SECRETS['all']}"}
    client = Client(app, REMOTE_ADDR=STRANGER)
    statuses = [client.get("/queues", **wrong).status for _ in range(authentication.FAILURES + 1)]
    assert statuses == [401] * authentication.FAILURES + [429]
    reply = client.get("/queues", **wrong)
    assert (reply.status, reply.json["code"]) == (429, "too_many_failures")
    assert 1 <= int(reply.headers["retry-after"]) <= authentication.WINDOW
    assert client.get("/queues", **right).status == 200
    assert client.get("/queues", **wrong).status == 429, "a valid token from there does not begin the count anew"
    assert Client(app, REMOTE_ADDR="203.0.113.8").get("/queues", **wrong).status == 401
    later = time.monotonic() + authentication.WINDOW
    monkeypatch.setattr(authentication, "time", SimpleNamespace(monotonic=lambda: later))
    assert client.get("/queues", **wrong).status == 401


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "", "unix"])
def test_wrong_tokens_through_a_local_proxy_lock_no_client_out(app: Application, address: str) -> None:
    client = Client(app, REMOTE_ADDR=address)
    for _ in range(authentication.FAILURES + 1):
        assert client.get("/queues", Authorization="Bearer wrong").status == 401
    assert client.get("/queues", Authorization=f"Bearer {SECRETS['all']}").status == 200


def test_a_missing_token_does_not_count_as_a_guess(app: Application) -> None:
    client = Client(app, REMOTE_ADDR=STRANGER)
    assert {client.get("/queues").status for _ in range(authentication.FAILURES + 1)} == {401}
    assert client.get("/queues", Authorization=f"Bearer {SECRETS['all']}").status == 200


def test_ipv4_clients_of_a_dual_stack_socket_are_distinguished() -> None:
    assert authentication._network("::ffff:192.0.2.1") == "192.0.2.1" != authentication._network("::ffff:192.0.2.2")
    assert authentication._network("::ffff:127.0.0.1") == ""


def test_addresses_of_one_ipv6_network_are_one_client(app: Application) -> None:
    for number in range(authentication.FAILURES):
        assert Client(app, REMOTE_ADDR=f"2001:db8::{number:x}").get("/queues", Authorization="Bearer x").status == 401
    assert Client(app, REMOTE_ADDR="2001:db8::ffff").get("/queues", Authorization="Bearer x").status == 429
    assert Client(app, REMOTE_ADDR="2001:db8:0:1::1").get("/queues", Authorization="Bearer x").status == 401


def test_failures_of_a_bounded_number_of_clients_are_remembered(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "CLIENTS", 10)
    for number in range(30):
        Client(app, REMOTE_ADDR=f"198.51.100.{number}").get("/queues", Authorization="Bearer wrong")
    assert app.access is not None
    assert len(app.access._failures._counts) == 10


# The syntax of tokens.


@pytest.mark.parametrize(
    "line",
    [
        "a:b",
        "name:0123456789abcdef:send",
        "name:0123456789abcdef:send:*:more",
        ":0123456789abcdef:send:*",
        "na me:0123456789abcdef:send:*",
        "name::send:*",
        "name:short:send:*",
        "name:0123456789abcdef é:send:*",
        "name:sha256=0123456789abcdef:send:*",
        f"name:sha256={'A' * 64}:send:*",
        "name:0123456789abcdef::*",
        "name:0123456789abcdef:read:*",
        "name:0123456789abcdef:send,:*",
        "name:0123456789abcdef:send:",
        "name:0123456789abcdef:send:a,,b",
        "name:0123456789abcdef:send:a b",
        "name:0123456789abcdef:send:(a)",
    ],
)
def test_an_invalid_token_line_is_refused_by_number_and_not_quoted(line: str) -> None:
    with pytest.raises(BadTokens, match=r"^QUEUE_TOKENS, line 3: ") as refused:
        Tokens(Settings(tokens=f"{TOKENS.splitlines()[2]}\n\n{line}")).load()
    assert "0123456789" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tokens_can_be_on_one_line_with_semicolons_or_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("c:cccccccccccccccc:metrics:*\n")
    found = Tokens(
        Settings(tokens="a:aaaaaaaaaaaaaaaa:send:*;b:bbbbbbbbbbbbbbbb:admin:x", tokens_file=str(file))
    ).load()
    assert [(grant.name, sorted(grant.rights)) for grant in found] == [
        ("a", ["send"]),
        ("b", ["admin"]),
        ("c", ["metrics"]),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a:aaaaaaaaaaaaaaaa:send:*;a:bbbbbbbbbbbbbbbb:send:*", "two tokens have the same name"),
        ("a:aaaaaaaaaaaaaaaa:send:*;b:aaaaaaaaaaaaaaaa:send:*", "two tokens have the same secret"),
        ("# none;", "QUEUE_TOKENS and QUEUE_TOKENS_FILE contain no token"),
    ],
)
def test_tokens_that_contradict_each_other_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(BadTokens, match=f"^{sentence}$"):
        Tokens(Settings(tokens=text)).load()


def test_settings_do_not_show_the_tokens_they_hold() -> None:
    assert SECRETS["all"] not in repr(Settings(tokens=TOKENS))


def test_the_command_creates_a_token_that_the_service_accepts(store: Engine) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "web.access.tokens", "worker", "send,receive", "jobs*"],
        capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    secret, line = (row.split()[-1] for row in made.splitlines())
    client = Client(handler.make_app(Settings(tokens=line), store), Authorization=f"Bearer {secret}")
    assert client.post("/queues/jobs-1/messages", {"text": "x"}).status == 200
    assert secret not in line


@pytest.mark.parametrize("arguments", [[], ["worker", "fly", "*"], ["a b", "send", "*"]])
def test_the_command_creates_no_token_that_the_service_would_refuse(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tokens.main(arguments) != 0
    assert capsys.readouterr().out == ""


# The token file is read again.


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the token file, which the service checks on every request."""
    monkeypatch.setattr(tokens, "LOOK_EVERY", 0.0)
    file = tmp_path / "tokens"
    file.write_text(f"all:{SECRETS['all']}:send,receive,admin:*")
    return file


def status_of(app: Application, name: str) -> int:
    return bearer(app, name).get("/queues").status


def test_a_changed_token_file_takes_effect_without_a_restart(store: Engine, file: Path) -> None:
    app = handler.make_app(Settings(tokens_file=str(file)), store)
    assert (status_of(app, "all"), status_of(app, "admin")) == (200, 401)
    file.write_text(f"another:{SECRETS['admin']}:admin:*")
    assert (status_of(app, "all"), status_of(app, "admin")) == (401, 200)


@pytest.mark.parametrize("bad", ["nonsense", "", None], ids=["a bad line", "empty", "gone"])
def test_a_file_that_becomes_bad_keeps_the_tokens_and_is_logged_once(
    store: Engine, file: Path, bad: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    app = handler.make_app(Settings(tokens_file=str(file)), store)
    assert status_of(app, "all") == 200
    file.unlink()
    if bad is not None:
        file.write_text(bad)
    assert [status_of(app, "all"), status_of(app, "all")] == [200, 200]
    (record,) = caplog.records
    assert record.getMessage().endswith("; the service keeps the tokens it has")
    file.write_text(f"another:{SECRETS['admin']}:admin:*")
    assert (status_of(app, "all"), status_of(app, "admin")) == (401, 200)


def test_every_request_is_refused_until_tokens_were_read_once(store: Engine, file: Path) -> None:
    file.write_text("nonsense")
    app = handler.make_app(Settings(tokens_file=str(file)), store)
    reply = bearer(app, "all").get("/queues")
    assert (reply.status, reply.json["code"]) == (503, "unavailable")
    with pytest.raises(Unavailable):
        Tokens(Settings(tokens_file=str(file))).grants()


# The service itself.


def refusal(environment: dict[str, str]) -> str:
    """Return the log of a service that must not start."""
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", "handler:app"],
        env=os.environ | {"PORT": "0", "QUEUE_DATABASE_URL": "sqlite:////no/such/directory/queue.db"} | environment,
        capture_output=True, check=False, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode != 0
    return ended.stderr


def test_without_tokens_the_service_serves_loopback_only_and_names_the_settings_to_change_that() -> None:
    log = refusal({"QUEUE_HOST": "0.0.0.0"})
    assert "QUEUE_TOKENS or QUEUE_TOKENS_FILE, or QUEUE_ALLOW_ANONYMOUS=yes" in log
    with_tokens = refusal({"QUEUE_HOST": "0.0.0.0", "QUEUE_TOKENS": TOKENS})
    assert "would let anyone" not in with_tokens
    assert "/no/such/directory does not exist" in with_tokens  # it got as far as opening the database


def test_bad_tokens_refuse_the_start_and_show_no_secret() -> None:
    log = refusal({"QUEUE_TOKENS": f"worker:{SECRETS['all']}:fly:*"})
    assert "queue_service: QUEUE_TOKENS, line 1: rights must be some of send, receive, admin, metrics" in log
    assert SECRETS["all"] not in log
    log = refusal({"QUEUE_TOKENS_FILE": "/no/such/file"})
    assert "queue_service: cannot read QUEUE_TOKENS_FILE: No such file or directory" in log


@pytest.fixture(scope="module")
def guarded() -> Iterator[LiveServer]:
    with LiveServer({"QUEUE_TOKENS": TOKENS, "QUEUE_ACCESS_LOG": "json"}) as server:
        yield server


def test_the_client_sends_its_token_and_reports_why_it_was_refused(guarded: LiveServer) -> None:
    with QueueClient(guarded.url, queue="jobs", token=SECRETS["producer"]) as producer:
        producer.send("x")
        with pytest.raises(Forbidden):
            producer.receive()
    with QueueClient(guarded.url, queue="jobs", token=SECRETS["consumer"]) as consumer:
        assert [message.text for message in consumer.receive()] == ["x"]
    with QueueClient(guarded.url) as anonymous, pytest.raises(Unauthenticated) as refused:
        anonymous.send("x")
    assert isinstance(refused.value, NotAllowed)
    error = problem(429, b'{"code": "too_many_failures"}', 60.0)
    assert isinstance(error, TooManyFailures)


def test_a_command_reports_a_refusal_in_one_line(guarded: LiveServer) -> None:
    command = subprocess.run(
        [sys.executable, "-m", "clients", "send", "--url", guarded.url, "--queue", "jobs"],
        env=os.environ | {"QUEUE_TOKEN": SECRETS["consumer"]},
        input="x\n", capture_output=True, check=False, text=True,
    )  # fmt: skip
    assert command.returncode == 1
    assert command.stderr.count("\n") == 1
    assert "the token 'consumer' lacks the right send" in command.stderr
    assert SECRETS["consumer"] not in command.stderr


def test_curl_authenticates_with_name_and_secret(guarded: LiveServer) -> None:
    printed = subprocess.run(
        ["curl", "-s", "-u", f"all:{SECRETS['all']}", "-d", '{"text": "x"}', f"{guarded.url}/queues/curl/messages"],
        capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    assert '"text": "x"' in printed


def test_a_worker_that_reached_max_requests_exits_without_an_error() -> None:
    """Its shutdown ends the waits of readers, which no token allows."""
    settings = {"QUEUE_TOKENS": TOKENS, "WEB_CONCURRENCY": "1", "GUNICORN_CMD_ARGS": "--max-requests 3"}
    with LiveServer(settings) as server:
        before = server.workers

        def is_replaced() -> bool:
            with QueueClient(server.url, token=SECRETS["all"]) as client:
                client.send("x")
            return server.workers != before

        await_true(is_replaced)
        assert "Exception in post_request" not in server.log()


def test_no_log_contains_a_secret_a_text_a_receipt_or_a_key(guarded: LiveServer) -> None:
    """Send valid and invalid requests of all kinds, then search every line that the service logged."""
    with QueueClient(guarded.url, queue="jobs", token=SECRETS["all"], retry_for=0) as client:
        client.send_many(["TEXT-secret"], idempotency_key="KEY-secret")
        (message,) = client.receive(lease=60)
        receipt = str(message.receipt)
        message.extend(60)
        message.ack()
        client.send("TEXT-secret")
        (message,) = client.receive(lease=60)
        client.transact(ack=[message], send=["TEXT-secret"])
    for target in ("/queues", "/queues/jobs/peek?text=TEXT-secret", "/TEXT-secret", "/messages/TEXT-secret"):
        for method in ("GET", "DELETE", "TEXT"):
            subprocess.run(
                ["curl", "-s", "-X", method, "-u", "all:WRONG-secret", "-H", "X-Request-Id: TEXT secret",
                 "-H", "Referer: http://TEXT-secret/", "-A", "TEXT-secret", f"{guarded.url}{target}"],
                capture_output=True, check=True,
            )  # fmt: skip
    for unreadable in (b"GET / HTTP/1.1\r\nAuthorization Bearer WRONG-secret\r\n\r\n", b"TEXT-secret\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", guarded.port), 20) as connection:
            connection.sendall(unreadable)
            assert b" 400 " in connection.recv(1_000)
    log = (guarded.directory / "log").read_text()
    for line in ('"route": "/messages/{receipt}"', '"token": "all"', "Invalid request from ip=127.0.0.1: Invalid HTTP"):
        assert line in log
    for word in ("TEXT", "KEY-", "WRONG", receipt.rpartition("~")[2], *SECRETS.values()):
        assert word not in log
