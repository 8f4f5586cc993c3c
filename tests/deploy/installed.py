"""Try the installed package away from the tree: the service, its tools and the client. `tox run -e wheel` runs this.

It needs no test library, so that only the package and its requirements are installed.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import files, metadata, version
from pathlib import Path
from tempfile import TemporaryDirectory

COMMANDS = Path(sys.executable).parent
STARTS_WITHIN = 20.0  # seconds
STOPS_WITHIN = 40.0  # seconds: a little over the graceful timeout
# A user's own modules, which must not take the place of the service's.
DECOYS = ("handler", "settings", "storage", "web", "clients", "bottle", "queue_service")


def main() -> None:
    check_the_names_in_site_packages()
    check_the_description()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in DECOYS:
            Path(f"{name}.py").write_text(f"raise SystemExit('{name}.py of the working directory was imported')\n")
        assert run("queue-service", "--version") == f"queue-service {version('queue-service-http')}\n"
        with served() as url:
            check_the_client(url)
            check_the_copy(url)
            check_the_commands(url)
            check_the_tools()
        check_the_service_for_tests()
    print("The installed service, tools and client work.")


def check_the_names_in_site_packages() -> None:
    tops = {path.parts[0] for path in files("queue-service-http") or () if path.parts[0] != ".."}
    assert tops == {"queue_service", f"queue_service_http-{version('queue-service-http')}.dist-info"}, tops
    assert [path.name for path in COMMANDS.glob("queue-*")] == ["queue-service"]


def check_the_description() -> None:
    described = metadata("queue-service-http")
    assert {line.split(",")[0] for line in described.get_all("Project-URL", [])} >= {"Homepage", "Changelog"}
    text = str(described.json["description"])
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://")] == []


def check_the_client(url: str) -> None:
    from queue_service import QueueClient  # type: ignore[import-not-found,unused-ignore]

    with QueueClient(url, queue="jobs") as client:
        client.send("hello")
        assert [message.text for message in client.receive()] == ["hello"]


def check_the_service_for_tests() -> None:
    from queue_service.testing import running_service  # type: ignore[import-not-found,unused-ignore]

    with running_service() as url:
        check_the_client(url)


def check_the_copy(url: str) -> None:
    source, copy = Path("source"), Path("copy")
    source.write_bytes(b"".join(b"line %d\n" % number for number in range(5_000)) + b"no end")
    run("queue-service", "copy", str(source), str(copy), "--url", url)
    assert copy.read_bytes() == source.read_bytes()


def check_the_commands(url: str) -> None:
    run("queue-service", "send", "hello", "--url", url, "--queue", "jobs")
    assert run("queue-service", "receive", "--url", url, "--queue", "jobs") == "hello\n"
    assert "queue-service" in run("queue-service", "completion", "bash")


def check_the_tools() -> None:
    database = "sqlite:///messages.db"
    assert run("queue-service", "check", database).startswith("ok: ")
    assert "queue     jobs: " in run("queue-service", "info", database)
    run("queue-service", "backup", database, "backup.db")
    assert run("queue-service", "check", "sqlite:///backup.db").startswith("ok: ")
    run("queue-service", "vacuum", "sqlite:///backup.db")
    assert "0  messages" in run("queue-service", "migrate", "sqlite:///backup.db", "sqlite:///moved.db")
    assert "for the client" in run("queue-service", "token", "worker", "send,receive", "jobs")


@contextmanager
def served() -> Iterator[str]:
    """Yield the URL of a service that `queue-service serve` runs in the working directory."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(COMMANDS / "queue-service"), "serve", "--port", str(port), "--database", "sqlite:///messages.db"]
    with Path("log").open("wb") as log:
        service = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + STARTS_WITHIN
        while not answers(port):
            is_starting = service.poll() is None and time.monotonic() < deadline
            assert is_starting, Path("log").read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        service.send_signal(signal.SIGTERM)
        assert service.wait(STOPS_WITHIN) == 0, Path("log").read_text()
    finally:
        service.kill()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def run(command: str, *arguments: str) -> str:
    """Run an installed command, which must succeed; return its output."""
    done = subprocess.run([COMMANDS / command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


if __name__ == "__main__":
    main()
