"""Test the recipes of docs/deploy.md: run the lines that need no platform."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from storage import open_store
from storage.model import NewMessage
from tests.deploy.container import Image, base_image, base_python, container, obstacle, run
from tests.deploy.test_systemd import UNIT, service_section
from tests.support.live import REPOSITORY, LiveServer, await_true
from tests.support.programs import program

DEPLOY = (REPOSITORY / "docs/deploy.md").read_text()
contained = pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "it can")


def lines(heading: str, prompt: str) -> list[str]:
    """Return the commands in a section's console blocks."""
    section = re.split(r"^## ", DEPLOY.split(f"\n## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return [line[2:] for line in "".join(blocks).splitlines() if line.startswith(prompt)]


@pytest.fixture
def machine() -> Iterator[Image]:
    """Run a separate system with the tree in /tree and the recipe's prerequisite: python3."""
    python = base_python()
    if python is None:
        pytest.skip("no Python here has pip")
    with TemporaryDirectory(prefix="queue-machine-") as directory:
        Path(directory).chmod(0o755)
        image = base_image(Path(directory, "system"), python)
        image.workdir = "/tree"
        shutil.copytree(
            REPOSITORY, image.layer / "tree", ignore=shutil.ignore_patterns(".*", "*.db*", "__pycache__", "tests")
        )
        yield image


@pytest.mark.slow
@contained
def test_the_systemd_recipe_starts_a_service(machine: Image) -> None:
    typed = lines("One machine, with systemd", "# ")
    for line in typed:
        if not line.startswith(("systemctl", "curl", "runuser")):
            run(machine, line)
    program("systemd-analyze")
    run(machine, f"systemd-analyze verify --man=no /etc/systemd/system/{UNIT.name} 2>&1 | (! grep {UNIT.name})")
    unit = service_section()
    names = (machine.layer / "etc/passwd").read_text()
    found = re.search(rf"^{unit['User']}:x:(\d+):(\d+):", names, re.MULTILINE)
    assert found is not None
    user = f"{found[1]}:{found[2]}"
    with TemporaryDirectory() as state:
        os.chown(state, int(found[1]), int(found[2]))
        name, _, value = unit["Environment"].partition("=")
        with container(
            machine, *unit["ExecStart"].split(), user=user, workdir="/",
            environment={name: value}, volumes={Path(state): f"/var/lib/{unit['StateDirectory']}"},
        ) as running:  # fmt: skip
            (ready,) = [shlex.split(line) for line in typed if line.startswith("curl")]
            await_true(lambda: running.process.poll() is not None or running.execute(*ready, "-fsS").returncode == 0)
            assert running.process.poll() is None, running.process.communicate()
            (tool,) = [line for line in typed if line.startswith("runuser")]
            backup = running.execute(*shlex.split(tool.removeprefix("runuser -u queue -- ")))  # already that user
            assert backup.returncode == 0, backup.stderr
            assert (Path(state) / "backup.db").stat().st_size > 0
            assert running.stop() == 0


@pytest.mark.slow
def test_the_lambda_recipe_creates_a_loadable_function(tmp_path: Path) -> None:
    python = base_python()
    if python is None:
        pytest.skip("no Python here has pip")
    minor = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, check=True, text=True
    ).stdout.strip()
    tree = tmp_path / "tree"
    shutil.copytree(REPOSITORY, tree, ignore=shutil.ignore_patterns(".*", "*.db*", "__pycache__", "tests"))
    typed = lines("AWS Lambda", "$ ")
    for line in typed[:3]:
        here = line.replace("python3 ", f"{python} ").replace("--python-version 3.13", f"--python-version {minor}")
        done = subprocess.run(here, shell=True, cwd=tree, capture_output=True, check=False, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert all(line.startswith("aws ") for line in typed[3:])
    load = "import handler; handler.lambda_handler({'path': '/health', 'requestContext': {}}, None)"
    loaded = subprocess.run(
        [python, "-S", "-c", load], env={"PYTHONPATH": str(tree / "build/lambda.zip")}, cwd=tmp_path,
        capture_output=True, check=False, text=True,
    )  # fmt: skip
    assert "BadSetting: QUEUE_DATABASE_URL names a SQLite file" in loaded.stderr


def test_the_procfiles_command_starts_with_the_platforms_settings() -> None:
    kind, _, command = (REPOSITORY / "Procfile").read_text().strip().partition(": ")
    assert (kind, command) == ("web", "gunicorn handler:app")  # LiveServer's command, and
    assert f"`{command}`" in DEPLOY
    (setting,) = [line for line in lines("A platform with a Procfile", "$ ") if "dokku config:set" in line]
    settings = dict(word.split("=", 1) for word in shlex.split(setting)[3:])
    assert settings.pop("QUEUE_DATABASE_URL") == "sqlite:////data/queue.db"  # LiveServer has its own database
    with LiveServer(settings) as server:
        assert f"http://{settings['QUEUE_HOST']}:{server.port}" in server.log()


def test_a_message_needs_no_more_space_than_the_sizing_says(tmp_path: Path) -> None:
    many, text = 10_000, "x" * 60
    with closing(open_store(f"sqlite:///{tmp_path}/queue.db")) as store:
        store.send("sizing", [NewMessage(text=text)] * many)
    taken = (tmp_path / "queue.db").stat().st_size / many - len(text)
    documented = re.search(r"under (\d+) bytes more for each", (REPOSITORY / "docs/operations.md").read_text())
    assert documented is not None
    assert taken < int(documented[1])


def test_every_setting_in_a_recipe_exists() -> None:
    named = set(re.findall(r"\b(?:QUEUE|WEB)_[A-Z_]+\b", DEPLOY))
    known = (REPOSITORY / "settings.py").read_text()
    assert named
    assert {name for name in named if name not in known} == set()


def test_the_python_in_the_recipes_is_the_required_one() -> None:
    assert "Python 3.11 or newer" in DEPLOY
    assert sys.version_info >= (3, 11)
    assert subprocess.run([sys.executable, "-c", "import handler"], cwd=REPOSITORY, check=False).returncode == 0
