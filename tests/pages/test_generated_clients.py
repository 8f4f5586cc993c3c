"""Test clients that generators make from the OpenAPI document. `tox -e generated-clients` installs the generators."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.live import LiveServer
from tests.support.programs import program

PYTHON = """
import sys

from generated import Client
from generated.api.messages import ack, ack_many, change_lease, extend_many, receive_from_queue, send, transact
from generated.api.messages import send_to_queue
from generated.api.queues import get_queue, peek, put_queue
from generated.models import AckResult, AddressedMessage, ExtendResult, Extension, Ids, LeaseEnd, LeaseExtension
from generated.models import LeasedMessage, Message, PeekedMessage, Problem, Queue, Receipts, Receive, SettingsChange
from generated.models import StoredMessage, TakenMessage, Transacted, Transaction

client, queue = Client(sys.argv[1], raise_on_unexpected_status=True), sys.argv[2]

sent = send_to_queue.sync(queue, client=client, body=Message("first"))
assert isinstance(sent, StoredMessage) and sent.text == "first", sent
batch = send_to_queue.sync(queue, client=client, body=[Message(text, priority=1) for text in "abc"])
assert isinstance(batch, Ids) and len(batch.ids) == 3, batch

shown = peek.sync(queue, client=client, limit=2)
assert isinstance(shown[0], PeekedMessage) and [one.text for one in shown] == ["first", "a"], shown

leased = receive_from_queue.sync(queue, client=client, lease=60)
assert isinstance(leased, LeasedMessage) and leased.text == "a" and leased.receive_count == 1, leased
extended = change_lease.sync(leased.receipt, client=client, body=LeaseExtension(600))
assert isinstance(extended, LeaseEnd) and extended.leased_until > leased.leased_until, extended
assert ack.sync_detailed(leased.receipt, client=client).status_code == 204

two = receive_from_queue.sync(queue, client=client, lease=60, limit=2)
assert [type(one) for one in two] == [LeasedMessage, LeasedMessage], two
receipts = [one.receipt for one in two]
many = extend_many.sync(client=client, body=Extension(receipts, 600))
assert isinstance(many, ExtendResult) and many.extended == 2, many
acked = ack_many.sync(client=client, body=Receipts(receipts))
assert isinstance(acked, AckResult) and acked.acked == 2, acked

last = receive_from_queue.sync(queue, client=client, lease=60)
steps = Transaction([last.receipt], [AddressedMessage("next", queue=queue)], Receive(queue, lease=60))
done = transact.sync(client=client, body=steps)
assert isinstance(done, Transacted) and done.messages[0].text == "next", done
again = transact.sync(client=client, body=steps)
assert isinstance(again, Problem) and again.code == "stale_receipt", again

assert receive_from_queue.sync(queue, client=client) is None
send_to_queue.sync(queue, client=client, body=Message("plain"))
taken = receive_from_queue.sync(queue, client=client)
assert isinstance(taken, TakenMessage) and taken.text == "plain", taken

changed = put_queue.sync(queue, client=client, body=SettingsChange(max_receives=3))
assert isinstance(changed, Queue) and changed.settings.max_receives == 3, changed
put_queue.sync(queue, client=client, body=SettingsChange(paused=True))
assert get_queue.sync(queue, client=client).settings.max_receives == 3

wrong = send.sync(client=client, body=Message("x", priority=10))
assert isinstance(wrong, Problem) and (wrong.status, wrong.code, wrong.field) == (400, "invalid_input", "priority")
"""

TYPESCRIPT = """
import createClient from "openapi-fetch";
import type { paths } from "./api.js";

declare const process: { argv: [string, string, string, string] };
const [, , baseUrl, queue] = process.argv;
const client = createClient<paths, "application/json" | "application/problem+json">({ baseUrl });
const path = { queue };

function check(held: unknown): asserts held {
  if (!held) throw new Error("a check failed");
}

const sent = await client.POST("/queues/{queue}/messages", { params: { path }, body: { text: "first" } });
check(sent.data && "id" in sent.data && sent.data.text === "first");
const messages = ["a", "b", "c"].map((text) => ({ text, priority: 1 }));
const batch = await client.POST("/queues/{queue}/messages", { params: { path }, body: messages });
check(batch.data && "ids" in batch.data && batch.data.ids.length === 3);

const shown = await client.GET("/queues/{queue}/peek", { params: { path, query: { limit: 2 } } });
check(shown.data?.map((one) => one.text).join() === "first,a");

const { data: one } = await client.GET("/queues/{queue}/messages", { params: { path, query: { lease: 60 } } });
check(one && "receipt" in one && one.text === "a" && one.receive_count === 1);
const extended = await client.PATCH("/messages/{receipt}", {
  params: { path: { receipt: one.receipt } }, body: { lease: 600 },
});
check(extended.data && extended.data.leased_until > one.leased_until);
const { response } = await client.DELETE("/messages/{receipt}", { params: { path: { receipt: one.receipt } } });
check(response.status === 204);

const query = { lease: 60, limit: 2 };
const { data: two } = await client.GET("/queues/{queue}/messages", { params: { path, query } });
check(Array.isArray(two));
const receipts = two.flatMap((each) => ("receipt" in each ? [each.receipt] : []));
const many = await client.POST("/messages/extend", { body: { receipts, lease: 600 } });
check(many.data?.extended === 2);
const acked = await client.POST("/messages/ack", { body: { receipts } });
check(acked.data?.acked === 2);

const { data: last } = await client.GET("/queues/{queue}/messages", { params: { path, query: { lease: 60 } } });
check(last && "receipt" in last);
const body = { ack: [last.receipt], send: [{ queue, text: "next" }], receive: { queue, lease: 60 } };
const done = await client.POST("/transactions", { body });
check(done.data?.messages?.[0]?.text === "next");
const again = await client.POST("/transactions", { body });
check(again.error?.code === "stale_receipt");

const changed = await client.PUT("/queues/{queue}", { params: { path }, body: { max_receives: 3 } });
check(changed.data?.settings.max_receives === 3);

const wrong = await client.POST("/messages", { body: { text: "x", priority: 10 } });
check(wrong.error?.status === 400 && wrong.error.code === "invalid_input" && wrong.error.field === "priority");
"""


def run(*command: str | Path, directory: Path) -> None:
    ran = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=200)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_openapi_python_client(server: LiveServer, queue: str, tmp_path: Path) -> None:
    pytest.importorskip("openapi_python_client")
    generate = [program("openapi-python-client"), "generate", "--fail-on-warning", "--meta", "none"]
    run(*generate, "--url", f"{server.url}/openapi.json", "--output-path", "generated", directory=tmp_path)
    run(sys.executable, "-c", PYTHON, server.url, queue, directory=tmp_path)


def test_openapi_typescript_and_openapi_fetch(server: LiveServer, queue: str, tmp_path: Path) -> None:
    modules = os.environ.get("QUEUE_TEST_NODE_MODULES")
    if modules is None:
        pytest.skip("QUEUE_TEST_NODE_MODULES does not name a folder with openapi-typescript")
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "calls.ts").write_text(TYPESCRIPT)
    programs = tmp_path / "node_modules/.bin"
    run(programs / "openapi-typescript", f"{server.url}/openapi.json", "-o", "api.d.ts", directory=tmp_path)
    strict = ["--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes"]
    run(programs / "tsc", *strict, "--module", "nodenext", "--target", "es2022", "calls.ts", directory=tmp_path)
    run(program("node"), "calls.js", server.url, queue, directory=tmp_path)
