"""Test the container recipe: run the commands of the Dockerfile and compose.yaml as a container would."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from tests.deploy.container import Container, Image, base_python, build, container, context, instructions, obstacle
from tests.support.live import REPOSITORY, await_true

STEPS = instructions((REPOSITORY / "Dockerfile").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
USER = "10001:10001"


def values(name: str) -> list[str]:
    return [step.value for step in STEPS if step.name == name]


def test_the_image_contains_only_what_the_service_needs() -> None:
    copied = set(context())
    assert {
        "handler.py",
        "settings.py",
        "gunicorn.conf.py",
        "requirements.txt",
        "storage/sqlite/schema/1.sql",
    } <= copied
    tops = {Path(name).parts[0] for name in copied}
    package = {"pyproject.toml", "README.md", "LICENSE", "handler.py", "settings.py", "gunicorn.conf.py"}
    assert tops == package | {"requirements.txt", "web", "storage", "clients"}
    assert not [name for name in copied if "__pycache__" in name or ".db" in name]


def test_the_image_is_small_and_runs_as_an_unprivileged_user() -> None:
    assert all(image.split()[0].endswith("-slim") for image in values("FROM"))
    assert values("USER") == [USER]
    assert "--require-hashes" in values("RUN")[0]
    assert "curl" not in " ".join(step.value for step in STEPS)
    assert [step.value[0] for step in STEPS if step.name == "CMD"] == ["["]


def test_every_service_of_compose_drops_the_privileges_it_does_not_need() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_files_and_commands_named_by_compose_exist() -> None:
    services = COMPOSE["services"]
    mounts = [mount.split(":")[0] for service in services.values() for mount in service.get("volumes", [])]
    assert [mount for mount in mounts if mount.startswith(".") and not (REPOSITORY / mount).exists()] == []
    assert {mount for mount in mounts if not mount.startswith(".")} == COMPOSE["volumes"].keys()
    (job,) = yaml.safe_load((REPOSITORY / "deploy/prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["queue:5000"]}]
    assert f'up{{job="{job["job_name"]}"}}' in (REPOSITORY / "docs/alerts.yaml").read_text()
    (source,) = yaml.safe_load((REPOSITORY / "deploy/grafana/datasources.yml").read_text())["datasources"]
    assert source["url"].removeprefix("http://").split(":")[0] in services


def test_compose_waits_for_longer_than_a_stop_takes() -> None:
    graceful = re.search(r"^graceful_timeout = (\d+)", (REPOSITORY / "gunicorn.conf.py").read_text(), re.MULTILINE)
    assert graceful is not None
    assert int(COMPOSE["services"]["queue"]["stop_grace_period"].removesuffix("s")) > int(graceful[1])


contained = [pytest.mark.slow, pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "it can")]


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    python = base_python()
    if python is None:
        pytest.skip("no Python here has pip, as the base image's has")
    with TemporaryDirectory(prefix="queue-image-") as directory:
        Path(directory).chmod(0o755)
        yield build(Path(directory), python)


@pytest.fixture
def data() -> Iterator[Path]:
    """Return a volume like a new named one: the image's directory and its owner."""
    with TemporaryDirectory(prefix="queue-data-") as directory:
        os.chown(directory, *map(int, USER.split(":")))
        yield Path(directory)


@contextmanager
def queue_of_compose(image: Image, data: Path) -> Iterator[Container]:
    """Run the service `queue` as compose.yaml defines it; yield it when it is healthy."""
    service = COMPOSE["services"]["queue"]
    assert service["volumes"] == ["data:/data"]
    with container(image, volumes={data: "/data"}, environment=interpolated(service["environment"])) as running:
        await_true(lambda: running.process.poll() is not None or is_healthy(running))
        assert running.process.poll() is None, running.process.communicate()
        yield running


def interpolated(environment: dict[str, str], **given: str) -> dict[str, str]:
    """Replace variables like compose: ${NAME:-default} and ${NAME:+value}."""

    def value(found: re.Match[str]) -> str:
        name, how, other = found.groups()
        return (given.get(name, "") or other) if how == "-" else (given.get(name) and other) or ""

    return {name: re.sub(r"\$\{(\w+):([-+])([^}]*)\}", value, text) for name, text in environment.items()}


def is_healthy(running: Container) -> bool:
    return running.execute(*running.image.healthcheck).returncode == 0


class TestContained:
    pytestmark = contained

    def test_without_tokens_or_anonymous_access_the_start_is_refused(self, image: Image, data: Path) -> None:
        with container(image, volumes={data: "/data"}) as running:
            output, _ = running.process.communicate(timeout=30)
        assert running.process.returncode == 1
        assert "QUEUE_ALLOW_ANONYMOUS" in output.decode()

    def test_a_volume_of_another_owner_is_refused_in_one_sentence(self, image: Image, tmp_path: Path) -> None:
        with container(image, volumes={tmp_path: "/data"}, environment={"QUEUE_ALLOW_ANONYMOUS": "yes"}) as running:
            output, _ = running.process.communicate(timeout=30)
        assert running.process.returncode == 1
        assert output.decode().strip().splitlines()[-1].endswith("/data is not writable")

    def test_messages_survive_the_container(self, image: Image, data: Path) -> None:
        with queue_of_compose(image, data) as running:
            assert running.execute("id", "-u").stdout == "10001\n"
            assert running.execute("touch", "/venv/x").returncode != 0
            assert running.execute("touch", "/x").returncode != 0
            sent = running.execute("sh", "-c", "echo a line | queue-service send --queue jobs")
            assert sent.returncode == 0, sent.stderr
            assert running.stop() == 0
        with queue_of_compose(image, data) as running:
            got = running.execute("queue-service", "receive", "--queue", "jobs")
            assert got.stdout == "a line\n", got.stderr
            typed = re.findall(
                r"^\$ docker exec queue (.+)$", (REPOSITORY / "docs/deploy.md").read_text(), re.MULTILINE
            )
            assert len(typed) == 3
            for line in [*typed, "queue-service vacuum sqlite:////data/queue.db"]:
                tool = running.execute(*shlex.split(line))
                assert (tool.returncode, tool.stderr) == (0, "")

    def test_tokens_in_composes_secret_file_are_required(self, image: Image, data: Path) -> None:
        service, secret = COMPOSE["services"]["queue"], COMPOSE["secrets"]["tokens"]["file"]
        environment = interpolated(service["environment"], QUEUE_TOKENS_FILE="./queue.tokens")
        assert interpolated({"file": secret}, QUEUE_TOKENS_FILE="./queue.tokens") == {"file": "./queue.tokens"}
        assert service["secrets"] == ["tokens"]
        with TemporaryDirectory() as secrets:
            os.chmod(secrets, 0o755)
            file = Path(secrets, "tokens")
            file.write_text("shop:a-secret-of-thirty-two-letters:send:orders*\n")
            with container(
                image, volumes={data: "/data", Path(secrets): "/run/secrets"}, environment=environment
            ) as running:
                await_true(lambda: running.process.poll() is not None or is_healthy(running))
                send = "echo a line | QUEUE_TOKEN={} queue-service send --queue orders --retry-for 1"
                refused = running.execute("sh", "-c", send.format("none"))
                assert refused.returncode == 1, refused.stderr
                sent = running.execute("sh", "-c", send.format("a-secret-of-thirty-two-letters"))
                assert (sent.returncode, sent.stderr) == (0, "")

    def test_a_dead_service_is_unhealthy(self, image: Image, data: Path) -> None:
        with container(image, "sleep", "60", volumes={data: "/data"}) as running:
            assert running.execute("true").returncode == 0
            assert not is_healthy(running)

    def test_the_copy_job_of_compose_copies_a_file(self, image: Image, data: Path, tmp_path: Path) -> None:
        job = COMPOSE["services"]["copy"]
        assert job["volumes"] == [".:/files"]
        source = tmp_path / "source"
        source.write_bytes(b"\n".join(b"%d" % number for number in range(5_000)) + b"\r\n\0no end of line")
        (tmp_path / "queue_service").mkdir()  # the user's own, which must not replace the service's
        os.chown(tmp_path, 4_321, 4_321)
        with queue_of_compose(image, data) as running, container(
            image, *(word.replace("//queue:", "//127.0.0.1:") for word in job["entrypoint"]), "source", "copy",
            volumes={tmp_path: "/files"}, workdir=job["working_dir"], user="4321:4321", beside=running,
            environment=interpolated(job["environment"]),
        ) as copying:  # fmt: skip
            output, _ = copying.process.communicate(timeout=60)
            assert copying.process.returncode == 0, output.decode()
        assert (tmp_path / "copy").read_bytes() == source.read_bytes()
