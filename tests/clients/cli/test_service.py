"""Test `queue-service serve` and the tools in a checkout; tests/deploy/installed.py tests the installed ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clients.cli import main, service
from settings import Settings
from tests.support.live import REPOSITORY, LiveServer


def test_a_tool_names_the_command_in_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["check", f"sqlite:///{tmp_path}/none.db"]) == 1
    assert capsys.readouterr().err == f"queue-service: {tmp_path}/none.db does not exist\n"
    with pytest.raises(SystemExit):
        main.main(["backup"])
    assert "usage: queue-service " in capsys.readouterr().err


def test_if_the_service_is_not_installed_it_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "find_spec", lambda name: None)
    assert main.main(["serve"]) == 1
    assert "pip install '.[server]'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", *service.TOOLS])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: queue-service" in capsys.readouterr().out


def test_a_wrong_value_of_a_flag_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "3")  # so that it is as before after the test
    assert main.main(["serve", "--workers", "x"]) == 1
    assert capsys.readouterr().err == "queue-service: WEB_CONCURRENCY must be a whole number from 1 to 256\n"


def test_each_flag_of_serve_is_a_setting() -> None:
    values = {"QUEUE_HOST": "127.0.0.2", "PORT": "7", "QUEUE_DATABASE_URL": "sqlite:///x", "WEB_CONCURRENCY": "5",
              "QUEUE_TOKENS_FILE": "t", "QUEUE_ACCESS_LOG": "json", "QUEUE_LOG": "json"}  # fmt: skip
    assert {variable for variable, _ in service.FLAGS.values()} == set(values)
    meanings = dict(service.FLAGS.values())
    for variable, default in {"PORT": Settings().port, "WEB_CONCURRENCY": Settings().workers}.items():
        assert f"(default {default})" in meanings[variable]
    for variable, value in values.items():
        assert Settings.from_env({variable: value}) != Settings.from_env({})


@pytest.mark.parametrize("link", [False, True])
def test_a_users_own_modules_do_not_replace_the_services(tmp_path: Path, link: bool) -> None:
    (folder := tmp_path / "project").mkdir()
    for name in ("handler", "settings", "storage", "web"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    if link:
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"  # gunicorn uses PWD, which a shell keeps as it was typed
    server = LiveServer(
        {"PYTHONPATH": str(REPOSITORY), "PWD": str(folder)},
        command=[sys.executable, "-P", "-m", "clients", "serve", "--workers", "1"],
        working_directory=folder,
    )
    with server:
        assert len(server.workers) == 1


def test_a_taken_port_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with LiveServer() as server:
        done = subprocess.run(
            [sys.executable, "-m", "clients", "serve", "--port", str(server.port)],
            cwd=REPOSITORY,
            env=os.environ | {"QUEUE_DATABASE_URL": f"sqlite:///{tmp_path}/queue.db"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"queue_service: port {server.port} is taken by another queue_service; "
    )
