"""Test that a browser consumes and changes nothing by opening, reloading or prefetching a page."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urljoin

import pytest

import handler
from settings import Settings
from tests.pages.browser import Browser
from tests.support.live import LiveServer, await_true
from tests.support.wsgi import Client, a_store
from web.observability.access_log import rule_of

READS = ["/messages", "/messages?lease=60", "/queues/jobs/messages", "/queues/jobs/messages?limit=5&wait=1"]
FIREFOX = {"User_Agent": "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101", "Accept_Language": "en"}
CROSS = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", **FIREFOX}
ROUTES = [(route.method, rule_of(route)) for route in handler.make_app().bottle.routes]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with a_store() as store:
        yield Client(handler.make_app(Settings(), store))


@pytest.fixture(autouse=True)
def untouched(client: Client) -> Iterator[None]:
    """Assert that the test leaves the messages unchanged."""
    for queue in ("default", "jobs"):
        client.call("DELETE", f"/queues/{queue}")
        client.post(f"/queues/{queue}/messages", [{"text": "a"}, {"text": "b"}])
    before = contents(client)
    yield
    assert contents(client) == before


def contents(client: Client) -> list[object]:
    return [client.get(f"/queues/{queue}/{what}").json for queue in ("default", "jobs") for what in ("peek",)] + [
        [(one["queue"], one["stats"]["received"], one["stats"]["sent"]) for one in client.get("/queues").json["queues"]]
    ]


@pytest.mark.parametrize("target", READS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Purpose": "prefetch"},
        {"Sec_Purpose": "prefetch;prerender"},
        {"Sec_Purpose": "prefetch;anonymous-client-ip", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Site": "none"},
        {"Purpose": "prefetch"},
        {"Purpose": "Prefetch", "Sec_Fetch_Site": "same-origin"},
        {"X_Moz": "prefetch"},
        {"X_Purpose": "preview"},
    ],
)
def test_a_prefetched_read_is_refused(client: Client, target: str, headers: dict[str, str]) -> None:
    reply = client.get(target, **headers)
    assert (reply.status, reply.json["code"]) == (403, "prefetch")


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Site": "none"},
        {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Site": "same-origin", "Sec_Fetch_Dest": "iframe"},
        {"Upgrade_Insecure_Requests": "1", **FIREFOX},
    ],
)
@pytest.mark.parametrize(
    ("target", "page"),
    [
        ("/messages", "./#/default"),
        ("/messages?lease=60&queue=a.b&queue=c", "./#/a.b"),
        ("/messages?queue=a.b&queue=c", "./#/a.b"),
        ("/queues/jobs/messages", "../../#/jobs"),
        ("/queues/jobs/messages?limit=5&wait=1", "../../#/jobs"),
        ("/queues/%0dX:1/messages", "../../"),
        ("/messages?queue=%ff", "./#/default"),
    ],
)
def test_an_opened_read_redirects_to_the_page_of_its_queue(
    client: Client, target: str, page: str, headers: dict[str, str]
) -> None:
    reply = client.get(target, **headers)
    assert (reply.status, reply.headers["location"]) == (303, page)


@pytest.mark.parametrize("target", ["/messages?queue=jobs", "/queues/jobs/messages"])
def test_the_redirect_stays_under_the_path_of_a_proxy(client: Client, target: str) -> None:
    reply = client.get(target, Sec_Fetch_Mode="navigate", Sec_Fetch_Site="none")
    page = urljoin(f"http://shared.example/our/queue{target}", reply.headers["location"])
    assert page == "http://shared.example/our/queue/#/jobs"


def test_an_opened_read_redirects_to_the_page_with_tokens_too() -> None:
    with a_store() as store:
        client = Client(handler.make_app(Settings(tokens="all:0123456789abcdef:receive:*"), store))
        assert client.get("/messages", Sec_Fetch_Mode="navigate", Sec_Fetch_Site="none").status == 303


@pytest.mark.parametrize("target", READS)
@pytest.mark.parametrize(
    "headers",
    [
        CROSS,
        CROSS | {"Sec_Fetch_Mode": "navigate"},
        CROSS | {"Sec_Fetch_Site": "same-site"},
        {"Origin": "http://elsewhere.example", **FIREFOX},
        {"Origin": "null"},
        FIREFOX,  # an image over plain HTTP from another machine
    ],
)
def test_a_read_by_another_origins_page_is_refused(client: Client, target: str, headers: dict[str, str]) -> None:
    reply = client.get(target, **headers)
    assert (reply.status, reply.json["code"]) == (403, "cross_origin")


@pytest.mark.parametrize(("method", "rule"), ROUTES)
def test_other_origins_can_only_open_the_pages(client: Client, method: str, rule: str) -> None:
    harmless = method in ("GET", "HEAD") and rule in ("/", "/docs", "/openapi.json")
    path = re.sub("{.*?}", "jobs", rule.replace("{id}", "1"))
    assert (client.call(method, path, **CROSS).status == 403) != harmless


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json"])
def test_no_changing_method_is_open_to_other_origins(client: Client, method: str, path: str) -> None:
    assert client.call(method, path, **CROSS).json["code"] == "cross_origin"


@pytest.mark.parametrize(
    "headers", [{"User_Agent": "curl/8.5", "Accept": "*/*"}, {"User_Agent": "Mozilla/5.0 WindowsPowerShell/5.1"}]
)
def test_a_program_is_not_mistaken_for_a_browser(client: Client, headers: dict[str, str]) -> None:
    assert client.get("/queues/nothing/messages", **headers).status == 204


# With a real browser.

PAGES = {
    "/links": '<link rel="prefetch" href="{read}"><link rel="preload" as="fetch" href="{read}"><img src="{read}">'
    '<script src="{read}"></script><iframe src="{read}"></iframe><link rel="prerender" href="{read}">',
    "/rules": '<script type="speculationrules">{{"prefetch": [{{"source": "list", "urls": ["{read}"]}}], '
    '"prerender": [{{"source": "list", "urls": ["{read}"]}}]}}</script>',
    "/form": '<form method="post" enctype="text/plain" action="{read}">'
    """<input name='{{"text":"' value='x"}}'></form>"""
    "<script>document.forms[0].submit()</script>",
    "/fetch": '<script>for (const method of ["GET", "POST", "HEAD"]) for (const mode of ["no-cors", "cors"]) '
    'fetch("{read}", {{method, mode}}).catch(() => 0)</script>',
}


class Elsewhere(BaseHTTPRequestHandler):
    """Pages of another origin, which request a read in every way a page can."""

    read = ""

    def do_GET(self) -> None:
        page = PAGES.get(self.path, "").format(read=self.read).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def service() -> Iterator[LiveServer]:
    with LiveServer({"QUEUE_ALLOW_ANONYMOUS": "yes", "QUEUE_ACCESS_LOG": "plain", "WEB_CONCURRENCY": "1"}) as live:
        yield live


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def answered(service: LiveServer, status: int) -> int:
    """Return how many requests got this answer."""
    return sum(f" {status} " in line for line in service.log().splitlines())


def state_of(service: LiveServer) -> list[object]:
    """Return all messages in the service, and the totals of received and sent ones."""
    client = HttpClient(service.port)
    return [client.get("/queues/default/peek"), client.get("/queues")]


class HttpClient:
    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str) -> object:
        return self._ask("GET", path)

    def post(self, path: str, document: object) -> object:
        return self._ask("POST", path, json.dumps(document))

    def _ask(self, method: str, path: str, body: str | None = None) -> object:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)) as connection:
            connection.request(method, path, body)
            document = json.loads(connection.getresponse().read() or "null")
        for queue in document.get("queues", []) if isinstance(document, dict) else []:
            del queue["stats"]["oldest_age"]
        return document


@pytest.fixture
def full(service: LiveServer) -> Iterator[LiveServer]:
    """Run a service with messages, and assert at the end that exactly these are left."""
    HttpClient(service.port).post("/messages", [{"text": "a"}, {"text": "b"}])
    before = state_of(service)
    yield service
    assert state_of(service) == before


HOSTS = ["127.0.0.1", "queue.example"]  # for another machine's name, a browser omits most headers


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("target", ["/messages", "/queues/default/messages?lease=60"])
def test_a_read_opened_and_reloaded_shows_the_page_row_36(
    browser: Browser, full: LiveServer, host: str, target: str
) -> None:
    tab = browser.tab()
    for _ in range(2):
        tab.open(f"http://{host}:{full.port}{target}")
        tab.await_true("document.getElementById('name')?.textContent === 'default'")
    tab.run("window.isOld = true")
    tab.command("Page.reload")
    tab.await_true("!window.isOld && document.getElementById('name')?.textContent === 'default'")
    tab.close()


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("page", PAGES)
def test_another_origins_page_consumes_and_sends_nothing_row_36(
    browser: Browser, full: LiveServer, elsewhere: int, host: str, page: str
) -> None:
    Elsewhere.read = f"http://{host}:{full.port}/messages"
    before = answered(full, 403)
    tab = browser.tab()
    tab.open(f"http://elsewhere.example:{elsewhere}{page}")
    if page == "/rules":  # Chromium may refuse to follow these to another origin
        tab.run("new Promise((done) => setTimeout(done, 1000))")
    else:
        await_true(lambda: answered(full, 403) > before)
        tab.run("new Promise((done) => setTimeout(done, 300))")  # the page requests the others
    tab.close()


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_a_prefetched_read_from_the_services_own_page_gets_nothing_row_36(
    browser: Browser, full: LiveServer, host: str
) -> None:
    tab = browser.tab()
    tab.command("Page.setBypassCSP", enabled=True)  # otherwise the page's own policy stops it
    tab.open(f"http://{host}:{full.port}/docs")
    before = answered(full, 403)
    tab.run(
        """for (const rel of ["prefetch", "prerender"])
             document.head.append(Object.assign(document.createElement("link"), {rel, href: "/messages"}));
           const rules = {prefetch: [{urls: ["/messages"]}], prerender: [{urls: ["/messages?lease=60"]}]};
           const script = Object.assign(document.createElement("script"), {type: "speculationrules"});
           script.textContent = JSON.stringify(rules);
           document.head.append(script); 0"""
    )
    await_true(lambda: answered(full, 403) > before)
    tab.run("new Promise((done) => setTimeout(done, 1000))")
    tab.close()
