"""Test that GitHub's workflow and Dependabot run the same as a local run."""

from __future__ import annotations

import configparser
import re
from typing import Any

import yaml

from tests.support.live import REPOSITORY

GITHUB = REPOSITORY / ".github"
TOX = configparser.ConfigParser()
TOX.read(REPOSITORY / "tox.ini")
ENVIRONMENTS = [name.strip() for name in TOX["tox"]["env_list"].split(",")]
WORKFLOW: dict[str, Any] = yaml.safe_load((GITHUB / "workflows/ci.yml").read_text())


def test_the_workflow_runs_the_readmes_own_test_command_with_the_least_rights() -> None:
    assert "    make test " in (REPOSITORY / "README.md").read_text()
    (job,) = WORKFLOW["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step][-1] == "make test"
    assert job["steps"][-1]["env"] == {"CI": "true"}  # as in .ci/run: a missing Python fails
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert job["timeout-minutes"] <= 30


def test_the_workflow_installs_every_python_that_tox_uses() -> None:
    (brought,) = [step["with"]["python-version"] for step in next(iter(WORKFLOW["jobs"].values()))["steps"]
                  if "setup-python" in step.get("uses", "")]  # fmt: skip
    assert {f"py{version.replace('.', '')}" for version in brought.split()} == {
        name for name in ENVIRONMENTS if name.startswith("py")
    }


def test_ci_installs_every_postgresql_that_tox_uses() -> None:
    versions = [name.removeprefix("postgres") for name in ENVIRONMENTS if name.startswith("postgres")]
    for version in versions:
        assert f"QUEUE_TEST_POSTGRES={version}" in TOX[f"testenv:postgres{version}"]["set_env"].split()
    (fetched,) = re.findall(r"get-postgres \S+ (.+)", (REPOSITORY / ".ci/run").read_text())
    assert fetched.split() == versions
    assert re.findall(r"postgresql-(\d+)", (GITHUB / "workflows/ci.yml").read_text()) == versions


def test_dependabot_covers_all_pinned_dependencies() -> None:
    asked = yaml.safe_load((GITHUB / "dependabot.yml").read_text())["updates"]
    assert {one["package-ecosystem"] for one in asked} == {"pip", "github-actions", "docker", "docker-compose"}
