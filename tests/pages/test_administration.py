"""Test what an administrator does on the page, alone, beside another one, without a right, and behind a proxy."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import QueueClient
from tests.pages.browser import Browser, Tab
from tests.pages.conftest import IS_LIVE, OpenTab
from tests.support.live import LiveServer, free_port
from tests.support.nginx import running
from tests.support.programs import program

pytestmark = pytest.mark.slow
KEEP_COPIED = "navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }"
SECRET = "0123456789abcdef"


def run(line: str, **environment: str) -> str:
    """Run a copied line in a shell, and return its output."""
    command = f'curl() {{ {program("curl")} --fail --silent --show-error "$@"; }}; {line}'
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, check=True, text=True)
    return done.stdout


def copied(tab: Tab, button: str) -> str:
    tab.run(KEEP_COPIED)
    tab.click(button)
    tab.await_true("window.copied")
    line: str = tab.run("((text) => { window.copied = ''; return text; })(window.copied)")
    return line


def confirm(tab: Tab) -> None:
    tab.click("#confirming [type=submit]")
    tab.await_true("!document.getElementById('confirming').open")


# Pause and settings.


def test_a_queue_is_paused_and_resumed(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    client.send("x")
    tab = open_tab(f"/#/{queue}")
    tab.click("#pause")
    confirm(tab)
    tab.await_true("document.getElementById('marks').textContent === 'paused'")
    assert client.settings()[0]["paused"]
    assert client.receive() == []
    tab.await_true("document.getElementById('pause').textContent === 'Resume'")
    tab.click("#pause")
    confirm(tab)
    tab.await_true("document.getElementById('marks').textContent === ''")
    assert client.receive() != []


def test_only_changed_settings_are_changed(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    client.put_settings({"lease": 45, "retention": 60, "tags": {"team": "a"}})
    before = client.settings()[0]
    tab = open_tab(f"/#/{queue}")
    tab.click("#settings")
    tab.await_true("document.getElementById('setting').open")
    assert set(tab.texts("#setting-fields b")) == set(before)
    assert all(tab.texts("#setting-fields label > span"))  # each says what it means
    tab.click("#setting [type=submit]")
    tab.await_true("document.querySelector('#setting .wrong').textContent === 'You have changed nothing.'")
    for name, value in {"max_receives": "3", "retention": "", "dedup_scope": "key", "tags": '{"team": "b"}'}.items():
        tab.choose(f"#setting [name={name}]", value)
    tab.click("#setting [name=dead_letter_expired]")
    tab.click("#setting [type=submit]")
    tab.await_true("!document.getElementById('setting').open")
    changes = {"max_receives": 3, "retention": None, "dedup_scope": "key", "tags": {"team": "b"}}
    assert client.settings()[0] == before | changes | {"dead_letter_expired": True}


def test_another_clients_change_meanwhile_is_kept_and_reported(
    open_tab: OpenTab, client: QueueClient, queue: str
) -> None:
    client.put_settings({"lease": 45})
    tab = open_tab(f"/#/{queue}")
    tab.click("#settings")
    tab.await_true("document.getElementById('setting').open")
    client.put_settings({"lease": 90})
    tab.choose("#setting [name=lease]", "60")
    tab.click("#setting [type=submit]")
    tab.await_true("document.querySelector('#setting .wrong').textContent.includes('Another client changed')")
    assert client.settings()[0]["lease"] == 90
    tab.click("#load")
    tab.await_true("document.querySelector('#setting [name=lease]').value === '90'")
    tab.choose("#setting [name=lease]", "60")
    tab.click("#setting [type=submit]")
    tab.await_true("!document.getElementById('setting').open")
    assert client.settings()[0]["lease"] == 60
    tab.faults.clear()  # Chromium's own line for a 412


# Copy as curl.


def test_actions_and_the_view_are_copied_as_lines_that_run(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    client.send_many(["one", "two"])
    tab = open_tab(f"/#/{queue}")
    tab.await_true("document.querySelectorAll('#messages li').length === 2")
    assert [message["text"] for message in json.loads(run(copied(tab, "#view")))] == ["two", "one"]
    tab.click("#pause")
    run(copied(tab, "#confirming .curl"))
    assert client.settings()[0]["paused"]
    tab.press("Escape")
    tab.click("#messages input")
    tab.click("#delete-selected")
    run(copied(tab, "#confirming .curl"))
    assert [message.text for message in client.peek()] == ["one"]
    tab.press("Escape")
    tab.click("#one .send")
    text = """it's "quoted" $HOME `id` !! \\ ü"""
    tab.choose("#sending [name=text]", text)
    run(copied(tab, "#sending .curl"))
    assert client.peek()[-1].text == text
    tab.press("Escape")
    tab.click("#settings")
    tab.await_true("document.getElementById('setting').open")
    tab.choose("#setting [name=lease]", "77")
    run(copied(tab, "#setting .curl"))
    assert client.settings()[0]["lease"] == 77
    tab.press("Escape")
    tab.click("#purge")
    run(copied(tab, "#confirming .curl"))
    assert client.peek() == []


def test_the_next_dialog_does_not_say_that_it_was_copied(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    client.send("x")
    tab = open_tab(f"/#/{queue}")
    tab.click("#pause")
    copied(tab, "#confirming .curl")
    tab.await_true("document.querySelector('#confirming .curl').textContent === 'Copied'")
    tab.press("Escape")
    tab.click("#purge")
    assert tab.texts("#confirming .curl") == ["Copy as curl"]


def test_where_the_browser_has_no_clipboard_the_line_is_shown_and_selected(chromium: Browser) -> None:
    with LiveServer({"QUEUE_ALLOW_ANONYMOUS": "yes"}) as live, QueueClient(live.url, queue="jobs") as client:
        client.send("x")
        tab = chromium.tab()
        tab.open(f"http://queue.example:{live.port}/#/jobs")  # plain HTTP to another machine
        tab.await_true("document.querySelectorAll('#messages li').length === 1")
        tab.click("#view")
        tab.await_true("document.getElementById('copying').open")
        line = tab.run("getSelection().toString()")
        assert line.startswith(f"curl 'http://queue.example:{live.port}/queues/jobs/peek?limit=25")
        tab.press("Enter")
        tab.close()


# Tokens.


@pytest.fixture
def guarded() -> Iterator[LiveServer]:
    """Run a service with one token for all and one that only receives."""
    tokens = f"ops:{SECRET}:send,receive,admin,metrics:*;reader:{SECRET[::-1]}:receive:*"
    with LiveServer({"QUEUE_TOKENS": tokens}) as live, QueueClient(live.url, queue="jobs", token=SECRET) as client:
        client.send("x")
        yield live


def sign_in(chromium: Browser, url: str, token: str) -> Tab:
    tab = chromium.tab()
    tab.open(url)
    tab.await_true("document.getElementById('signing').open")
    tab.type(token)
    tab.press("Enter")
    tab.await_true(f"!document.getElementById('signing').open && {IS_LIVE}")
    return tab


def test_a_copied_line_never_holds_the_token(chromium: Browser, guarded: LiveServer) -> None:
    tab = sign_in(chromium, f"{guarded.url}/#/jobs", SECRET)
    tab.click("#purge")
    line = copied(tab, "#confirming .curl")
    assert SECRET not in line
    assert json.loads(run(line, QUEUE_TOKEN=SECRET)) == {"purged": 1}
    tab.close()


def test_a_missing_right_is_explained_and_the_rest_works(chromium: Browser, guarded: LiveServer) -> None:
    tab = sign_in(chromium, f"{guarded.url}/#/jobs", SECRET[::-1])
    tab.await_true("document.querySelectorAll('#messages li').length === 1")
    assert not tab.run("document.getElementById('service').checkVisibility()")
    tab.click("#purge")
    tab.click("#confirming [type=submit]")
    tab.await_true(
        "document.querySelector('#confirming .wrong').textContent.endsWith('Sign in with a token that has this right.')"
    )
    tab.close()


# The service itself.


def test_the_state_of_the_service_is_shown(open_tab: OpenTab, client: QueueClient) -> None:
    tab = open_tab("/")
    tab.await_true("document.querySelectorAll('#service li').length === 7")
    facts = tab.texts("#service li")
    assert facts[:2] == ["version 1.0.0", "sqlite"]
    assert facts[3].endswith(" of disk free")
    assert facts[4] == "0 errors/s"
    for _ in range(100):
        client.send("x")
        if tab.run("document.querySelector('#service').textContent.includes('commits take ')"):
            return
        tab.run("new Promise((done) => setTimeout(done, 100))")
    raise AssertionError(tab.texts("#service li"))


def test_errors_of_the_service_stand_out(open_tab: OpenTab) -> None:
    tab = open_tab("/")
    tab.run("""(() => { let errors = 0; const real = fetch; window.fetch = async (path, options) => {
        const reply = await real(path, options);
        if (path !== "status") return reply;
        return new Response(JSON.stringify({...await reply.json(), errors: errors += 50, disk_free_bytes: 12e6}));
    }; })()""")
    tab.await_true("document.querySelectorAll('#service .dead').length === 2")
    free, errors = tab.texts("#service .dead")
    assert free == "12 MB of disk free"
    assert errors.endswith(" errors/s")


def test_a_service_that_stops_is_reported_until_it_is_back(chromium: Browser) -> None:
    with LiveServer() as live:
        tab = chromium.tab()
        tab.open(live.url)
        tab.await_true(IS_LIVE)
        live.stop()
        tab.await_true("document.getElementById('pulse').textContent.startsWith('The service does not respond.')")
        live.start()
        tab.await_true(IS_LIVE)
        tab.close()


# Under a path of a shared host.


def test_it_works_behind_a_proxy_that_strips_a_path(
    chromium: Browser, server: LiveServer, client: QueueClient, queue: str, tmp_path: Path
) -> None:
    client.send_many(["x", "y"])
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; user root; pid {tmp_path}/pid; events {{}} http {{ access_log off; {places}"
        f" server {{ listen 127.0.0.1:{port}; location /tools/queue/ {{"
        f" proxy_pass http://127.0.0.1:{server.port}/; proxy_set_header Host $http_host; }} }} }}"
    )
    with running(tmp_path, port):
        root = f"http://127.0.0.1:{port}/tools/queue/"
        tab = chromium.tab()
        tab.open(f"{root}queues/{queue}/messages")  # redirected to the queue's page
        tab.await_true(f"location.href === '{root}#/{queue}'")
        tab.await_true("document.querySelectorAll('#messages li').length === 2")
        tab.click("#messages input")
        tab.click("#delete-selected")
        assert json.loads(run(copied(tab, "#confirming .curl"))) == {"purged": 1}
        tab.press("Escape")
        tab.click("#back")
        tab.choose("#find", queue)
        tab.await_true(f"[...document.querySelectorAll('#queues a')].some((node) => node.textContent === '{queue}')")
        tab.click("header > a")
        tab.await_true(f"location.href === '{root}docs' && document.readyState === 'complete'")
        line = tab.texts("#get_queue pre code")[0]
        assert line == f"curl 127.0.0.1:{port}/tools/queue/queues/jobs"
        run(tab.texts("#send_to_queue pre code")[0])
        run(line)
        tab.click("nav h1 a")
        tab.await_true(f"location.href === '{root}' && {IS_LIVE}")
        assert [url for url in tab.requests if not url.startswith((root, "data:"))] == []
        assert tab.faults == []
        tab.close()
