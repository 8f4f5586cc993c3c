"""Test that the documents match the code: routes, codes, settings, and the README's commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

import handler
from settings import CLIENT_VARIABLES, VERSION, Settings
from storage.model import QueueSettings, QueueStats, State
from tests.support.live import LiveServer
from web.access.tokens import RIGHTS, Tokens
from web.native import problems
from web.observability.access_log import REQUEST_ID, log_writer, rule_of
from web.server.gunicorn_errors import ERROR_CODES
from web.sqs.actions.table import ACTIONS

ROOT = Path(__file__).resolve().parents[2]
HTTP = (ROOT / "docs/http.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
RELIABILITY = "\n" + (ROOT / "docs/reliability.md").read_text()
SQS = (ROOT / "docs/sqs.md").read_text()
README = (ROOT / "README.md").read_text()


def rows(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading."""
    section = text.split(f"\n{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert lines is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()[2:]]


def test_every_route_is_documented_and_every_documented_route_exists() -> None:
    documented = {row[0].strip("`") for row in rows(HTTP, "## Routes")}
    app = handler.make_app()
    routes = {f"{route.method} {rule_of(route)}" for route in app.bottle.routes if route.method != "HEAD"}
    assert documented == routes


def test_every_error_code_is_documented_with_its_status() -> None:
    documented = {(row[0].strip("`"), int(row[1])) for row in rows(HTTP, "## Errors")}
    coded = {(code, status) for status, code, _ in problems.PROBLEMS.values()}
    coded |= {(code, status) for status, (code, _) in problems.ROUTING.items()}
    coded |= {(code, status) for status, code in ERROR_CODES.items()}
    assert documented == coded


def test_every_right_is_documented_for_clients_and_operators() -> None:
    documented = {row[0].strip("`") for row in rows(HTTP, "## Access")}
    assert documented == set(RIGHTS)
    (line,) = re.findall(r"^- \*\*rights\*\*: of (.*), with commas", OPERATIONS, re.MULTILINE)
    assert line == ", ".join(f"`{right}`" for right in RIGHTS)


def test_the_example_token_file_is_valid() -> None:
    (example,) = re.findall(r"```\n(# name:secret:rights:queues\n.*?)```", OPERATIONS, re.DOTALL)
    assert len(Tokens(Settings(tokens=example)).load()) == 3


def test_every_part_of_an_access_log_line_is_documented() -> None:
    lines: list[bytes] = []
    log = log_writer("json", lines.append)
    assert log is not None
    log({"REQUEST_METHOD": "GET", REQUEST_ID: "1"}, 200, 0.1)
    section = OPERATIONS.split("## Access log", 1)[1].split("It never holds", 1)[0]
    assert re.findall(r"`([a-z_]+)`", section.split(":", 1)[1]) == list(json.loads(lines[0]))


def test_every_queue_setting_is_documented_with_its_default() -> None:
    documented = {row[0].strip("`"): json.loads(row[1]) for row in rows(HTTP, "### Settings")}
    assert documented == asdict(QueueSettings())


def test_every_action_of_sqs_is_documented_with_its_right() -> None:
    assert sorted(name for row in rows(SQS, "## Actions") for name in row[0].split(", ")) == sorted(ACTIONS)
    rights = rows(SQS, "## Access")
    assert [row[0].strip("`") for row in rights] == ["send", "receive", "admin", "any of these"]
    named = set(re.findall(r"[A-Z][A-Za-z]+", " ".join(row[1] for row in rights)))
    listing = {action for action in ACTIONS if action.startswith("List") or action.endswith("Batch")}
    assert named - {"List"} == ACTIONS.keys() - listing | {"SendMessageBatch"}


def test_every_stat_and_state_is_documented() -> None:
    documented = re.findall(r"`([a-z_]+)`", " ".join(row[0] for row in rows(HTTP, "## Queues")))
    assert documented == list(QueueStats._fields)
    assert all(f"`{state}`" in HTTP.split("### Peek", 1)[1] for state in State)


def test_every_environment_variable_is_documented_with_its_default() -> None:
    documented = {row[0].strip("`"): row[1].strip("`") for row in rows(OPERATIONS, "## Settings")}
    read = set(re.findall(r'"((?:QUEUE_|DATABASE_|WEB_)[A-Z_]+|PORT)"', (ROOT / "settings.py").read_text())) - {
        *CLIENT_VARIABLES
    }
    assert set(documented) == read
    assert Settings.from_env(documented) == Settings.from_env({}) == Settings()


def test_every_row_of_what_must_survive_has_a_test_named_after_it() -> None:
    documented = [int(row[0]) for row in rows(RELIABILITY, "# What must survive, and how it is tested")]
    names = [
        name for path in ROOT.glob("tests/**/*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    ]
    tested = {int(number) for name in names for number in re.findall(r"row_(\d+)", name)}
    assert documented == list(range(1, 37))
    assert tested == set(documented)


def test_the_newest_version_in_the_changelog_is_that_of_the_package() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]
    (version,) = re.findall(build["pattern"], (ROOT / build["path"]).read_text())
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version == VERSION


def test_every_link_in_the_documents_resolves() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_curl_lines_of_the_readme_print_what_it_says() -> None:
    console = re.search(r"```console\n(.*?)```", README, re.DOTALL)
    assert console is not None
    exchanges = re.findall(r"^\$ (.+)\n((?:[^$].*\n)*)", console[1], re.MULTILINE)
    assert len(exchanges) == 5
    script = "set -e\n" + "".join(f"{command}\necho //\n" for command, _ in exchanges)  # // ends an answer
    with LiveServer() as server:
        script = re.sub(r"curl (?:-s )?", "curl -sS ", script)
        script = script.replace("localhost:5000", server.url.removeprefix("http://"))
        ran = subprocess.run(["bash", "-c", script], capture_output=True, check=True, text=True)
        assert server_has_no_lease(server)
    printed = ran.stdout.split("//\n")[:-1]
    assert ran.stderr == ""
    assert [_without_what_varies(one) for one in printed] == [_without_what_varies(one) for _, one in exchanges]


def test_the_commands_print_what_their_page_says() -> None:
    page = "".join(re.findall(r"```console\n(.*?)```", (ROOT / "docs/commands.md").read_text(), re.DOTALL))
    script = re.sub(r"^[^$].*\n", "", page, flags=re.MULTILINE).replace("$ ", "", 1).replace("\n$ ", "\n")
    printed = re.sub(r"^\$ .*\n", "", page, flags=re.MULTILINE)
    script = f'queue-service() {{ "{sys.executable}" -m clients "$@"; }}\n{script}'
    with LiveServer() as server:
        environment = os.environ | {"QUEUE_URL": server.url}
        line = ["bash", "-c", script]
        ran = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    moment = re.compile(r'"sent_at": "[^"]*"')
    assert moment.sub("", ran.stdout) == moment.sub("", printed)


def server_has_no_lease(server: LiveServer) -> bool:
    """Return whether the last line acked the message that the fourth leased."""
    with urlopen(f"{server.url}/queues/jobs") as reply:
        return bool(json.load(reply)["stats"]["leased"] == 0)


def _without_what_varies(line: str) -> Any:
    if not line:
        return None
    document = json.loads(line)
    return {name: value for name, value in document.items() if name not in ("sent_at", "leased_until", "receipt")}


@pytest.mark.parametrize("name", ["README.md", "docs/commands.md", "docs/http.md", "docs/operations.md"])
def test_code_blocks_in_the_documents_are_ascii(name: str) -> None:
    for block in re.findall(r"```(?:console|python|json)\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
        assert block.replace("…", "").isascii()
