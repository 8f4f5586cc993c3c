"""Test that the service refuses requests that a browser sends for another site's page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import handler
from settings import Settings
from tests.support.wsgi import Client, a_store

PORT = "localhost:5000"
CHANGES = [
    ("GET", "/messages", b""),
    ("GET", "/queues/default/messages", b""),
    ("POST", "/messages", b"x"),
    ("POST", "/queues/default/messages", b"x"),
    ("POST", "/queues/default/purge", b""),
    ("POST", "/transactions", b'{"send": [{"text": "x"}]}'),
    ("PUT", "/queues/default", b'{"paused": true}'),
    ("DELETE", "/queues/default", b""),
]


@pytest.fixture
def client() -> Iterator[Client]:
    with a_store() as store:
        client = Client(handler.make_app(Settings(), store))
        client.post("/messages", {"text": "there"})
        yield client


def untouched(client: Client) -> bool:
    queue = client.get("/queues/default").json
    return (queue["stats"]["ready"], queue["stats"]["sent"], queue["settings"]["paused"]) == (1, 1, False)


@pytest.mark.parametrize(("method", "target", "body"), CHANGES)
@pytest.mark.parametrize(
    "marks",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},  # for example another port of localhost
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"},  # a link
        {"Origin": "https://elsewhere.example"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},  # from a sandboxed frame, or a file
    ],
)
def test_a_page_of_another_origin_changes_nothing(
    client: Client, method: str, target: str, body: bytes, marks: dict[str, str]
) -> None:
    reply = client.call(method, target, body, Host=PORT, Content_Type="text/plain", **marks)
    assert (reply.status, reply.json["code"]) == (403, "cross_origin")
    assert untouched(client)


@pytest.mark.parametrize(
    "marks",
    [
        {},  # curl, and any program
        {"Sec_Fetch_Site": "same-origin", "Origin": f"http://{PORT}"},  # the service's own page
        {"Sec_Fetch_Site": "same-origin", "Origin": "https://queue.example"},  # the same, behind a proxy that ends TLS
        {"Sec_Fetch_Site": "none"},  # typed into the address bar
        {"Origin": f"http://{PORT}"},
        {"Origin": f"HTTP://{PORT.upper()}"},
    ],
)
def test_programs_and_the_services_own_page_may_do_everything(client: Client, marks: dict[str, str]) -> None:
    assert client.call("POST", "/messages", b"x", Host=PORT, Content_Type="text/plain", **marks).status == 200
    assert client.get("/messages", Host=PORT, **marks).json == {"text": "there"}


@pytest.mark.parametrize("target", ["/", "/docs", "/openapi.json"])
def test_a_link_on_any_page_may_lead_to_the_pages(client: Client, target: str) -> None:
    assert client.get(target, Host=PORT, Sec_Fetch_Site="cross-site", Accept="text/html").status == 200


@pytest.mark.parametrize("host", ["rebound.example", "rebound.example:5000", "127.0.0.1.example:5000", "a.b:x", "a.b."])
def test_a_public_name_that_resolves_to_loopback_is_refused(client: Client, host: str) -> None:
    for method, target, body in CHANGES:
        reply = client.call(method, target, body, Host=host, Content_Type="text/plain")
        assert (reply.status, reply.json["code"]) == (421, "unknown_host")
    assert untouched(client)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:5000", "127.0.0.1:5000", "127.8.8.8", "[::1]:5000", "[::1]", "queue:5000", "a.localhost"],
)
def test_names_that_no_public_name_server_controls_are_answered(client: Client, host: str) -> None:
    assert client.get("/messages", Host=host).json == {"text": "there"}


@pytest.mark.parametrize(
    "settings", [Settings(host="0.0.0.0", allow_anonymous=True), Settings(allow_anonymous=True)], ids=["all", "proxied"]
)
def test_with_anonymous_access_every_host_name_is_answered(settings: Settings) -> None:
    with a_store() as store:
        client = Client(handler.make_app(settings, store))
        assert client.get("/queues", Host="queue.example").status == 200
        assert client.get("/queues", Host="queue.example", Origin="https://elsewhere.example").status == 403
