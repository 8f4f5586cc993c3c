"""Run every block of docs/python.md, and check its types as a user's type checker does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from clients import QueueClient
from clients.testing import running_service
from tests.support.live import REPOSITORY, LiveServer, await_true, free_port
from tests.support.programs import ProgramMissing

DOCUMENT = (REPOSITORY / "docs/python.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
FILES = {block.split("\n")[0][2:]: block for block in BLOCK.findall(DOCUMENT) if re.match(r"# \w+\.py\n", block)}


def script(section: str) -> str:
    """Return the section's blocks, which continue each other, without those that are files."""
    return "\n\n".join(block for block in BLOCK.findall(SECTIONS[section]) if block not in FILES.values())


def printed(script: str) -> list[str]:
    """Return the output that the comments after prints show."""
    behind = r"^ *print\(.*\)  # (.*)$"
    below = r"^    # (.*)$"
    return [line for found in re.findall(f"{behind}|{below}", script, re.MULTILINE) for line in found if line]


SCRIPTS = {section: text for section in SECTIONS if (text := script(section))}


@pytest.fixture
def url() -> Iterator[str]:
    with running_service() as url:
        yield url


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a folder with the client by the name that it has when it is installed."""
    (tmp_path / "queue_service").symlink_to(REPOSITORY / "clients")
    return tmp_path


def environment(installed: Path, url: str = "") -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(installed), "MYPYPATH": str(installed), "QUEUE_URL": url}


@pytest.mark.parametrize("section", SCRIPTS)
def test_each_section_prints_what_it_says(url: str, installed: Path, section: str) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPTS[section]],
        env=environment(installed, url),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout.splitlines()) == (0, printed(SCRIPTS[section])), run.stderr


def test_the_worker_handles_messages_until_a_signal(url: str, installed: Path) -> None:
    (installed / "worker.py").write_text(FILES["worker.py"])
    with (
        QueueClient(url, queue="thumbnails") as client,
        subprocess.Popen(
            [sys.executable, "worker.py"], cwd=installed, env=environment(installed, url), stderr=subprocess.PIPE
        ) as worker,
    ):
        client.send_many(["cat.png", "dog.png"])
        await_true(lambda: client.stats()["acked"] == 2)
        worker.send_signal(signal.SIGTERM)
        _, log = worker.communicate(timeout=20)
    assert {"INFO:root:made a thumbnail of cat.png", "INFO:root:made a thumbnail of dog.png"} <= set(
        log.decode().splitlines()
    )
    assert worker.returncode == 0


def test_the_web_application_sends_and_works_until_a_signal(url: str, installed: Path) -> None:
    (installed / "app.py").write_text(FILES["app.py"])
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    with (
        QueueClient(url, queue="made") as client,
        subprocess.Popen(command, cwd=installed, env=environment(installed, url), stderr=subprocess.PIPE) as server,
    ):
        adapter = requests.Session()
        adapter.mount("http://", HTTPAdapter(max_retries=Retry(connect=10, backoff_factor=0.1)))
        sent = adapter.post(f"http://127.0.0.1:{port}/pictures/cat.png", timeout=20)
        made = client.receive(wait=20)
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=20)
    assert (sent.status_code, sent.json(), [message.text for message in made]) == (200, "1", ["cat.png"])
    assert "Application shutdown complete" in log.decode()


def test_the_web_application_works_again_after_an_outage(installed: Path) -> None:
    service, port = LiveServer(), free_port()
    text = FILES["app.py"].replace('queue="thumbnails"', 'queue="thumbnails", retry_for=0').replace("(5)", "(0.1)")
    (installed / "app.py").write_text(text)
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    log = installed / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=installed, env=environment(installed, service.url), stderr=output) as server,
    ):
        await_true(lambda: log.read_text().count("the worker starts again") > 1)
        with service, QueueClient(service.url) as client:
            client.send("cat.png", queue="thumbnails")
            made = client.receive(queue="made", wait=20)
            server.send_signal(signal.SIGTERM)
            server.wait(20)
    assert [message.text for message in made] == ["cat.png"]
    assert "Application shutdown complete" in log.read_text()


@pytest.mark.slow
def test_the_fixtures_serve_the_test(installed: Path) -> None:
    for name in ("conftest.py", "test_thumbnails.py"):
        (installed / name).write_text(FILES[name])
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "test_thumbnails.py"],
        cwd=installed,
        env=environment(installed),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, "1 passed" in run.stdout) == (0, True), run.stdout


def test_no_block_is_left_out() -> None:
    assert FILES.keys() == {"worker.py", "app.py", "conftest.py", "test_thumbnails.py"}
    assert sum(map(len, map(BLOCK.findall, SECTIONS.values()))) == DOCUMENT.count("```python\n")


CHECKERS = {
    "mypy": ["--strict", "--no-incremental"],
    "pyright": ["--project", "pyright.json", "--pythonpath", sys.executable],
}
WRONG = """
from queue_service import AsyncQueueClient, QueueClient

client = QueueClient()
client.put_settings({"max_recieves": 3})
client.receive()[0].ack()
client.stats()["redy"]
client.send(b"x")
client.work(lambda: None)
client.consume(idel=5)
client.send_many([{"txt": "x"}])


async def main(client: AsyncQueueClient) -> None:
    (await client.receive())[0].ack()
    await client.send(b"x")
    await client.work(lambda message: None)
    text: str = client.send("x")
"""


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_accepts_the_examples_and_finds_mistakes(installed: Path, checker: str) -> None:
    if find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed; tox -e types installs it")
    if subprocess.run([sys.executable, "-m", checker, "--version"], capture_output=True, check=False).returncode:
        raise ProgramMissing(f"{checker} could not be fetched")  # the package pyright gets it from the npm registry
    examples = [*SCRIPTS.values(), *FILES.values()]
    for number, text in enumerate(examples):
        (installed / f"example_{number}.py").write_text(text)
    (installed / "pyright.json").write_text('{"typeCheckingMode": "strict", "include": ["*.py"]}')
    assert type_errors(installed, checker, "") == []
    (installed / "wrong.py").write_text(WRONG)
    assert type_errors(installed, checker, "wrong.py") == [*range(5, 12), *range(15, 19)]


def type_errors(folder: Path, checker: str, of: str) -> list[int | str]:
    """Return the lines of wrong.py with errors, in order, or all of the report about the examples."""
    names = sorted(path.name for path in folder.glob("*.py") if not of or path.name == of)
    run = subprocess.run(
        [sys.executable, "-m", checker, *CHECKERS[checker], *([] if checker == "pyright" else names)],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=200,
    )
    if of:
        return sorted({int(line) for line in re.findall(rf"{of}:(\d+):.*error", run.stdout)})
    return [] if run.returncode == 0 else [run.stdout + run.stderr]
